"""Parameters: their kind, their Trainer, their arrays and gradients."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.gluon import SymbolBlock, nn

from multitrainer import _mxnet
from support import CONTEXTS, backward, batches, mlp


def make_param(name="fc_weight", shape=(2,), **kwargs):
    param = gluon.Parameter(name, shape=shape, **kwargs)
    param.initialize()
    return param


def test_constants_and_statistics_are_auxiliary():
    net = mlp()
    auxiliary = {name for name, param in net.collect_params().items() if _mxnet.is_auxiliary(param)}
    assert auxiliary == {"net_batchnorm0_running_mean", "net_batchnorm0_running_var"}
    constant = gluon.Constant("fc_const", mx.nd.ones(2))
    assert _mxnet.is_auxiliary(constant)
    assert not _mxnet.is_statistic(constant)
    assert not _mxnet.is_statistic(gluon.Constant("running_mean_weight", mx.nd.ones(2)))
    assert not _mxnet.is_auxiliary(make_param(grad_req="null"))


@pytest.mark.parametrize("ending", ["running_mean", "running_var", "moving_mean", "moving_var"])
def test_statistics_are_known_by_their_names(ending):
    param = make_param(f"norm_{ending}", grad_req="null")
    assert _mxnet.is_statistic(param)
    assert _mxnet.is_auxiliary(param)
    param.grad_req = "write"
    assert not _mxnet.is_statistic(param)  # a parameter that trains, with an odd name
    assert not _mxnet.is_auxiliary(param)


@pytest.mark.parametrize(
    "name", ["net_norm0_gamma", "net_norm0_running_mean", "net_norm0_moving_var", "net_norm0_beta"]
)
def test_parameters_of_a_layer_share_a_stem(name):
    assert _mxnet.layer_prefix(make_param(name)) == "net_norm0_"


def test_a_parameter_belongs_to_its_trainer():
    param = make_param()
    assert _mxnet.trainer_of(param) is None
    trainer = gluon.Trainer([param], "sgd")
    assert _mxnet.trainer_of(param) is trainer


def test_parameters_get_their_trainers_back_only_after_an_error():
    first, second = make_param("a"), make_param("b")
    owner = gluon.Trainer([first], "sgd")

    def fail():
        with _mxnet.restoring_owners([first, second]):
            first._trainer = None
            gluon.Trainer([first, second], "sgd")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (_mxnet.trainer_of(first), _mxnet.trainer_of(second)) == (owner, None)
    optimizer = owner.optimizer
    known = optimizer.param_dict

    def fail_with_optimizer():
        with _mxnet.restoring_owners([first, second], optimizer):
            gluon.Trainer([first, second], optimizer)
            raise KeyError

    with pytest.raises(KeyError):
        fail_with_optimizer()
    assert optimizer.param_dict is known
    with _mxnet.restoring_owners([second]):
        trainer = gluon.Trainer([second], "sgd")
    assert _mxnet.trainer_of(second) is trainer


class TestGradients:
    @pytest.mark.parametrize("request_", ["write", "add"])
    def test_a_discarded_gradient_is_used_and_no_longer_added_to(self, request_):
        net = mlp(batchnorm=False)
        weight = net[0].weight
        weight.grad_req = request_
        assert not _mxnet.has_fresh_gradient(weight)
        backward(net, *batches(1)[0])
        assert _mxnet.has_fresh_gradient(weight)
        gradient = weight.grad().asnumpy()
        _mxnet.discard_gradient(weight)
        assert not _mxnet.has_fresh_gradient(weight)
        backward(net, *batches(1)[0])
        assert (weight.grad().asnumpy() == gradient).all()
        assert _mxnet.has_fresh_gradient(weight)

    def test_without_a_gradient_nothing_is_fresh(self):
        param = make_param(grad_req="null")
        _mxnet.discard_gradient(param)
        assert not _mxnet.has_fresh_gradient(param)

    def test_one_fresh_context_is_enough(self):
        param = gluon.Parameter("w", shape=(2,))
        param.initialize(ctx=CONTEXTS)
        param.list_data()[1]._fresh_grad = True
        assert _mxnet.has_fresh_gradient(param)
        _mxnet.mark_gradients_used(param.list_data())
        assert not _mxnet.has_fresh_gradient(param)

    def test_marks_on_single_arrays(self):
        param = gluon.Parameter("w", shape=(2,))
        param.initialize(ctx=CONTEXTS)
        first, second = param.list_data()
        _mxnet.mark_gradients_fresh([second])
        assert (_mxnet.is_fresh(first), _mxnet.is_fresh(second)) == (False, True)
        _mxnet.mark_gradients_used([second])
        assert not _mxnet.is_fresh(second)

    @pytest.mark.parametrize("stype", ["default", "row_sparse"])
    def test_arrays_and_gradients(self, stype):
        param = gluon.Parameter("w", shape=(2, 3), stype=stype, grad_stype=stype)
        with pytest.raises(RuntimeError, match="has not been initialized"):
            _mxnet.arrays_and_gradients(param)
        param.initialize(ctx=CONTEXTS)
        both = _mxnet.arrays_and_gradients(param)
        assert [array.context for pair in both for array in pair] == [CONTEXTS[0]] * 2 + [CONTEXTS[1]] * 2
        assert {array.stype for pair in both for array in pair} == {stype}
        assert all(gradient is own for (_, gradient), own in zip(both, param.list_grad()))

    def test_single_array_and_gradient(self):
        param = make_param()
        array, gradient = _mxnet.single_array_and_gradient(param)
        assert array is param.data()
        assert gradient is param.grad()
        param.grad_req = "null"
        assert _mxnet.single_array_and_gradient(param) == (param.data(), None)
        param.reset_ctx(CONTEXTS)
        assert _mxnet.single_array_and_gradient(param) == (None, None)


def test_a_deferred_parameter_has_neither_values_nor_shape():
    layer = nn.Dense(2)
    layer.initialize()
    assert not _mxnet.is_initialized(layer.weight)
    assert _mxnet.shape(layer.weight) is None
    layer(mx.nd.ones((1, 3)))
    assert _mxnet.is_initialized(layer.weight)
    assert _mxnet.shape(layer.weight) == (2, 3)


def test_a_parameter_of_a_symbol_block_has_the_shape_of_its_array(tmp_path):
    net = mlp(batchnorm=False)
    net.hybridize()
    net(mx.nd.ones((1, 3)))
    net.export(str(tmp_path / "net"))
    imported = SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
    assert _mxnet.shape(imported.collect_params()["net_dense0_weight"]) == (4, 3)
    assert _mxnet.shape(gluon.Parameter("unknown")) is None


@pytest.mark.parametrize("stype", ["default", "row_sparse"])
def test_an_optimizer_creates_the_same_state_for_an_array_like_the_weight(stype):
    param = gluon.Parameter("w", shape=(3, 2), stype=stype, dtype="float64")
    param.initialize()
    array = _mxnet.weight_like(param, mx.cpu(1))
    assert (array.stype, array.shape, array.context) == (stype, (3, 2), mx.cpu(1))
    assert array.dtype is np.float64


@pytest.mark.parametrize("ctx", [[mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]], ids=len)
def test_arrays_gradients_and_freshness_of_all_contexts(ctx):
    layer = nn.Dense(2, in_units=3)
    assert _mxnet.values_and_gradients(layer.weight) == ([], [])
    assert _mxnet.fresh_gradients(layer.weight) == []
    layer.initialize(ctx=ctx)
    assert _mxnet.values_and_gradients(layer.weight) == (layer.weight.list_data(), layer.weight.list_grad())
    assert _mxnet.fresh_gradients(layer.weight) == [False] * len(ctx)
    _mxnet.set_fresh_gradients(layer.weight, [True] * len(ctx))
    assert _mxnet.fresh_gradients(layer.weight) == [True] * len(ctx)
    assert _mxnet.has_fresh_gradient(layer.weight)
    layer.weight.grad_req = "null"
    assert _mxnet.values_and_gradients(layer.weight) == (layer.weight.list_data(), [])
    assert _mxnet.fresh_gradients(layer.weight) == []
    _mxnet.set_fresh_gradients(layer.weight, [True] * len(ctx))  # nothing to mark


@pytest.mark.parametrize(("stype", "grad_stype"), [("default", "row_sparse"), ("row_sparse", "row_sparse")])
def test_a_weight_is_sparse_whatever_its_gradient_is(stype, grad_stype):
    param = gluon.Parameter("w", shape=(3, 2), stype=stype, grad_stype=grad_stype)
    assert _mxnet.has_sparse_weight(param) == (stype == "row_sparse")


def test_gradient_arrays_are_those_of_each_context():
    net = mlp(CONTEXTS)
    arrays = _mxnet.gradient_arrays(net[0].weight)
    assert [array.context for array in arrays] == CONTEXTS
    arrays[1][:] = 3
    assert (net[0].weight.grad(CONTEXTS[1]).asnumpy() == 3).all()
    net[0].weight.grad_req = "null"
    deferred = gluon.Parameter("w", shape=(0, 2), allow_deferred_init=True)
    deferred.initialize()
    assert list(_mxnet.gradient_arrays(net[0].weight)) == list(_mxnet.gradient_arrays(deferred)) == []


def test_a_parameter_that_was_cast_gets_its_own_arrays_and_gradients_back():
    net = mlp(batchnorm=False)
    param = net[0].weight
    backward(net, *batches(1)[0])
    array, gradient, arrays = param.data(), param.grad(), _mxnet.ParameterArrays(param)
    param.cast("float16")
    arrays.put_back()
    assert param.data() is array
    assert param.grad() is gradient
    assert _mxnet.has_fresh_gradient(param)
    param.grad_req = "null"
    param.reset_ctx(mx.cpu(1))
    arrays.put_back()
    assert (param.grad_req, param.list_ctx(), param._grad) == ("null", [mx.cpu(0)], None)


def test_arrays_that_were_not_replaced_stay():
    param = mlp(batchnorm=False)[0].weight
    arrays = _mxnet.ParameterArrays(param)
    param.grad_req = "null"
    param.grad_req = "add"
    array, gradient = param.data(), param.grad()
    arrays.put_back()
    assert (param.grad_req, param.data() is array, param.grad() is gradient) == ("add", True, True)
