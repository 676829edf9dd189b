"""Parameters that are left out of a step neither move nor change."""

from types import SimpleNamespace

import pytest
from mxnet.gluon import Trainer

from multitrainer import _mxnet
from support import CONTEXTS, backward, batches, mlp, moved, run_python, snapshot


@pytest.mark.parametrize("update_on_kvstore", [False, True])
def test_a_step_leaves_parameters_out(update_on_kvstore):
    net = mlp(CONTEXTS, batchnorm=False)
    trainer = Trainer(net.collect_params(), "sgd", {"momentum": 0.9}, update_on_kvstore=update_on_kvstore)
    params, bias = trainer._params, net[0].bias
    backward(net, *batches(1)[0], CONTEXTS)
    before = snapshot(net)
    gradients = [gradient.asnumpy() for gradient in bias.list_grad()]
    with _mxnet.without_parameters(trainer, {bias}):
        trainer.step(4)
    assert moved(before, snapshot(net)) == set(before) - {bias.name}
    assert all((one == two.asnumpy()).all() for one, two in zip(gradients, bias.list_grad()))
    assert trainer._params is params
    assert bias.grad_req == "write"
    assert _mxnet.has_fresh_gradient(bias)


# In a process of its own, because `amp.init` patches the operators of the whole process.
AMP = """
from multitrainer import _mxnet
from mxnet.contrib import amp
from mxnet.gluon import Trainer, nn
amp.init(target_precision_ops=[])
net = nn.Dense(1, in_units=1)
net.initialize()
trainer = Trainer(net.collect_params(), 'sgd')
print(_mxnet.scales_loss(trainer))
amp.init_trainer(trainer)
print(_mxnet.scales_loss(trainer))
"""


def test_scales_loss_under_amp():
    assert run_python(AMP).stdout == "False\nTrue\n"


def test_the_list_is_restored_after_an_error_and_kept_if_nothing_is_left_out():
    net = mlp()
    trainer = Trainer(net.collect_params(), "sgd")
    params = trainer._params

    def fail():
        with _mxnet.without_parameters(trainer, {net[0].weight}):
            assert [param.name for param in trainer._params] == [param.name for param in params]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert trainer._params is params
    with _mxnet.without_parameters(trainer, set()):
        assert trainer._params is params


@pytest.mark.parametrize("ranks", [None, 1, 2])
def test_several_ranks_of_horovod_are_refused(ranks):
    trainer = Trainer(mlp().collect_params(), "sgd")
    if ranks is not None:
        trainer._process_set = SimpleNamespace(size=lambda: ranks)
    if ranks == 2:
        with pytest.raises(RuntimeError, match=r"Horovod's other 1 ranks: use multitrainer\.horovod\.Distributed"):
            _mxnet.check_one_horovod_rank(trainer)
    else:
        _mxnet.check_one_horovod_rank(trainer)


def test_appended_parameters_come_last_and_nothing_is_changed_in_place():
    net = mlp(batchnorm=False)
    trainer = Trainer(net[0].collect_params(), "sgd", {"momentum": 0.9})
    before = dict(vars(trainer))
    copies = {name: list(value) for name, value in before.items() if isinstance(value, (list, dict))}
    _mxnet.append_parameters(trainer, [net[1].bias])
    assert trainer._params == [*before["_params"], net[1].bias]
    assert trainer._param2idx[net[1].bias.name] == 2
    assert _mxnet.trainer_of(net[1].bias) is trainer
    assert not trainer._contains_sparse_weight
    assert {name: list(before[name]) for name in copies} == copies
    backward(net, *batches(1)[0])
    before = snapshot(net)
    trainer.step(4)
    assert moved(before, snapshot(net)) == set(before) - {net[1].weight.name}
