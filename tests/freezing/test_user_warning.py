"""A warning points at the line outside of the package that caused it."""

import inspect

import pytest

from multitrainer import MultiLRTrainer, freeze
from multitrainer.freezing.user_warning import warn
from support import backward, batches, mlp


def test_points_at_the_caller():
    with pytest.warns(UserWarning, match="^text$") as caught:
        warn("text")
    assert (caught[0].filename, caught[0].lineno) == (__file__, inspect.currentframe().f_lineno - 1)


@pytest.mark.parametrize(("module", "is_inside"), [("multitrainer.module", True), ("multitrainers", False)])
def test_skips_functions_of_the_package(module, is_inside):
    code = "def outer(call):\n    inner(call)\ndef inner(call):\n    call('text')"
    functions = {"__name__": module}
    exec(compile(code, "package.py", "exec"), functions)
    with pytest.warns(UserWarning, match="^text$") as caught:
        functions["outer"](warn)
    assert (caught[0].filename == __file__) is is_inside
    assert (caught[0].filename == "package.py") is not is_inside
    if not is_inside:
        assert caught[0].lineno == 4


def test_of_freeze_points_at_its_call():
    net = mlp()
    with pytest.warns(UserWarning, match="stays on") as caught:
        freeze(net[0].weight, within=net)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("method", ["step", "update", "allreduce_grads"])
def test_of_a_step_points_at_its_call(method):
    net = mlp()
    trainer = MultiLRTrainer(net.collect_params(), "sgd", update_on_kvstore=False)
    backward(net, *batches(1)[0])
    net[1].gamma.lr_mult = net[1].beta.lr_mult = 0
    arguments = () if method == "allreduce_grads" else (1,)
    with pytest.warns(UserWarning, match="statistics still move") as caught:
        getattr(trainer, method)(*arguments)
    assert {warning.filename for warning in caught} == {__file__}
