"""Multipliers of Modules: calls add up, wrong ones are refused, and the optimizer applies the right ones."""

import json
import pathlib
import pickle
import warnings

import cluster
import mxnet as mx
import numpy as np
import pytest
from mxnet.optimizer import Optimizer

from module_support import arrays, bound, convolution, optimizer_of, output, ready, update
from multitrainer import MultiLRTrainer, symbolic
from support import mlp, moved

WORKER = pathlib.Path(__file__).with_name("server_worker.py")
WEIGHT, BIAS = {"conv1_weight": 0}, {"conv1_bias": 0}


class TestConvolution:
    """Four updates of a convolution, frozen one parameter at a time or both at once."""

    @pytest.mark.parametrize("calls", [[WEIGHT, BIAS], [BIAS, WEIGHT], [{**WEIGHT, **BIAS}]], ids=str)
    def test_parameters_at_0_stay_however_many_calls_set_them(self, calls):
        module = ready()
        for multipliers in calls:
            symbolic.set_lr_mult(module, multipliers)
        before = output(module)
        assert update(module) == set()
        assert output(module) == before

    def test_only_the_named_parameter_stays(self):
        module = ready()
        symbolic.set_lr_mult(module, WEIGHT)
        assert update(module) == {"conv1_bias"}

    def test_stock_optimizer_forgets_the_first_call(self):
        module = ready()
        before = output(module)
        optimizer_of(module).set_lr_mult(WEIGHT)
        optimizer_of(module).set_lr_mult(BIAS)
        assert update(module) == {"conv1_weight"}
        assert abs(output(module) - before) > 1

    def test_multiplier_of_a_half_moves_half_as_far(self):
        full, half = ready(), ready()
        symbolic.set_lr_mult(half, {"conv1_bias": 0.5, "conv1_weight": 0})
        start = arrays(full)["conv1_bias"]
        update(full, 1)
        update(half, 1)
        ratio = (arrays(half)["conv1_bias"] - start) / (arrays(full)["conv1_bias"] - start)
        assert ratio == pytest.approx(0.5)


class TestLookUpOrder:
    """`_get_lr` looks at param_dict, then by index, then by name; updates prove it."""

    @pytest.mark.parametrize("kvstore", ["local", "device", None])
    @pytest.mark.parametrize("devices", [1, 2])
    def test_every_kvstore_looks_the_name_up(self, kvstore, devices):
        module = ready(kvstore=kvstore, context=[mx.cpu(i) for i in range(devices)])
        symbolic.set_lr_mult(module, WEIGHT)
        symbolic.set_lr_mult(module, {"conv1_bias": 2})
        assert update(module, size=devices) == {"conv1_bias"}

    def test_a_pickled_optimizer_keeps_the_order(self):
        module = ready(optimizer_params={"learning_rate": 1.0, "wd": 1.0})
        symbolic.set_lr_mult(module, {"conv1_weight": 0.5})
        symbolic.set_wd_mult(module, {"conv1_weight": 0.25})
        copied = pickle.loads(pickle.dumps(optimizer_of(module)))
        index = {name: index for index, name in copied.idx2name.items()}["conv1_weight"]
        assert (copied._get_lr(index), copied._get_wd(index)) == (0.5, 0.25)  # by name
        copied.lr_mult[index] = 0.125
        assert copied._get_lr(index) == 0.125  # by index, before the name
        parameter = mx.gluon.Parameter("conv1_weight", shape=1, lr_mult=0.75)
        copied.param_dict = {index: parameter}
        assert copied._get_lr(index) == 0.75  # the Parameter, before the index
        assert copied._get_lr(99) == 1  # an unknown index

    def test_setting_a_name_removes_its_entry_by_index(self):
        module = ready()
        index = {name: index for index, name in optimizer_of(module).idx2name.items()}["conv1_weight"]
        optimizer_of(module).set_lr_mult({index: 3})
        symbolic.set_lr_mult(module, BIAS)
        assert optimizer_of(module)._get_lr(index) == pytest.approx(0.15)
        symbolic.set_lr_mult(module, WEIGHT)
        assert optimizer_of(module)._get_lr(index) == 0


class TestMerging:
    """Earlier multipliers stay, whether a call, a symbol or MXNet's defaults set them."""

    def test_attributes_of_the_symbol_stay(self):
        module = ready(symbol=convolution(lr_mult=0, wd_mult=3))
        symbolic.set_lr_mult(module, {"conv1_bias": 2})
        symbolic.set_wd_mult(module, {"conv1_bias": 4})
        assert optimizer_of(module).lr_mult == {"conv1_weight": 0, "conv1_bias": 2}
        assert optimizer_of(module).wd_mult == {"conv1_weight": 3, "conv1_bias": 4}
        assert update(module) == {"conv1_bias"}

    def test_attributes_that_a_ready_optimizer_has_not_seen_apply(self):
        module = bound(convolution(lr_mult=0))
        module.init_optimizer(optimizer=mx.optimizer.create("sgd", learning_rate=0.05))
        symbolic.set_lr_mult(module, {"conv1_bias": 2})
        assert update(module) == {"conv1_bias"}
        symbolic.set_lr_mult(module, {"conv1_weight": 1})
        symbolic.set_lr_mult(module, {})
        assert update(module) == {"conv1_weight", "conv1_bias"}

    @pytest.mark.parametrize(("name", "gamma"), [("sgd", 1), ("lars", 0)])
    def test_default_weight_decay_multipliers_stay_until_they_are_set(self, name, gamma):
        names = {0: "fc_weight", 1: "fc_bias", 2: "bn_gamma", 3: "bn_beta"}
        optimizer = mx.optimizer.create(name, param_idx2name=names, wd=1.0)
        symbolic.set_wd_mult(optimizer, {"fc_weight": 0.5})
        assert [optimizer._get_wd(index) for index in names] == [0.5, 0, gamma, 0]
        symbolic.set_wd_mult(optimizer, {"bn_beta": 1})
        assert [optimizer._get_wd(index) for index in names] == [0.5, 0, gamma, 1]

    def test_numbers_are_plain_floats(self):
        module = ready()
        symbolic.set_lr_mult(module, {"conv1_weight": np.float32(0.5)})
        assert {type(value) for value in optimizer_of(module).lr_mult.values()} == {float}


def layer(data, name):
    return mx.sym.FullyConnected(data, name=name, num_hidden=1, flatten=False)


def buckets(names_of):
    """Return a BucketingModule; ``names_of`` returns the names of the layers of a bucket."""

    def symbol(key):
        net = mx.sym.Variable("data")
        for name in names_of(key):
            net = layer(net, name)
        return mx.sym.LinearRegressionOutput(mx.sym.mean(net, axis=1), mx.sym.Variable("label")), ["data"], ["label"]

    module = mx.mod.BucketingModule(symbol, default_bucket_key=4)
    module.bind([("data", (1, 4, 1))], [("label", (1, 1))])
    module.init_params(mx.init.One())
    return module


def update_bucket(module, key):
    before = arrays(module)
    data, label = mx.nd.ones((1, key, 1)), mx.nd.full((1, 1), -2)
    batch = mx.io.DataBatch(
        [data], [label], bucket_key=key, provide_data=[("data", data.shape)], provide_label=[("label", label.shape)]
    )
    module.forward_backward(batch)
    module.update()
    return moved(before, arrays(module))


class TestBucketingModule:
    def test_buckets_share_multipliers_even_if_created_later(self):
        module = buckets(lambda key: ["a", "b"])
        module.init_optimizer()
        update_bucket(module, 3)
        symbolic.set_lr_mult(module, {"a_weight": 0})
        symbolic.set_lr_mult(module, {"a_bias": 0})
        for key in (4, 3, 2):
            assert update_bucket(module, key) == {"b_weight", "b_bias"}

    def test_buckets_whose_indices_mean_different_parameters_are_refused(self):
        """With stock, bucket 1 has only b's parameters and gets the multipliers of a's, which come first."""
        module = buckets(lambda key: ["a", "b"] if key == 4 else ["b"])
        module.init_optimizer()
        update_bucket(module, 1)
        with pytest.raises(ValueError, match=r"takes parameter 0, 'b_weight', for 'a_weight'.*mx\.kv\.create"):
            symbolic.set_lr_mult(module, {"a_weight": 0, "a_bias": 0})
        optimizer = module._curr_module._optimizer
        optimizer.set_lr_mult({"a_weight": 0, "a_bias": 0})
        assert update_bucket(module, 1) == set()

    def test_a_kvstore_object_lets_such_buckets_train(self):
        module = buckets(lambda key: ["a", "b"] if key == 4 else ["b"])
        module.init_optimizer(kvstore=mx.kv.create("local"))
        update_bucket(module, 1)
        symbolic.set_lr_mult(module, {"a_weight": 0, "a_bias": 0})
        assert update_bucket(module, 1) == {"b_weight", "b_bias"}
        assert update_bucket(module, 4) == {"b_weight", "b_bias"}


def chain():
    loss = mx.sym.LinearRegressionOutput(layer(mx.sym.Variable("data"), "two"), mx.sym.Variable("label"))
    module = mx.mod.SequentialModule()
    module.add(mx.mod.Module(layer(mx.sym.Variable("data"), "one"), label_names=[]))
    module.add(mx.mod.Module(loss, label_names=["label"]), take_labels=True, auto_wiring=True)
    module.bind([("data", (1, 3))], [("label", (1, 1))])
    module.init_params(mx.init.One())
    return module


class TestSequentialModule:
    def test_each_name_reaches_the_module_that_has_it(self):
        module = chain()
        module.init_optimizer()
        symbolic.set_lr_mult(module, {"one_weight": 0, "two_bias": 0})
        symbolic.set_lr_mult(module, {"one_bias": 2})
        assert update(module, shape=(3,)) == {"one_bias", "two_weight"}
        assert [set(optimizer_of(part).lr_mult) for part in module._modules] == [
            {"one_weight", "one_bias"},
            {"two_bias"},
        ]

    def test_one_optimizer_for_two_modules_is_refused(self):
        module = chain()
        module.init_optimizer(optimizer=mx.optimizer.create("sgd"))
        with pytest.raises(ValueError, match=r"takes parameter 0, 'two_weight', for 'one_weight'"):
            symbolic.set_lr_mult(module, {"one_weight": 0})

    def test_nested_chains_and_modules_without_an_optimizer(self):
        outer = mx.mod.SequentialModule()
        inner = mx.mod.SequentialModule()
        inner.add(mx.mod.Module(layer(mx.sym.Variable("data"), "one"), label_names=[]))
        outer.add(inner)
        outer.add(mx.mod.PythonLossModule(grad_func=lambda scores, labels: mx.nd.ones_like(scores)), auto_wiring=True)
        outer.bind([("data", (1, 3))], [("softmax_label", (1,))])
        outer.init_params(mx.init.One())
        outer.init_optimizer()
        symbolic.set_lr_mult(outer, {"one_weight": 0})
        assert inner._modules[0]._optimizer.lr_mult == {"one_weight": 0}


class TestRefused:
    @pytest.mark.parametrize(
        ("multipliers", "error", "match"),
        [
            ({"conv1_weigth": 0}, ValueError, r"no parameter 'conv1_weigth'; the closest are 'conv1_weight'"),
            ({"data": 0}, ValueError, "this module has no parameter 'data'"),
            ({0: 0}, ValueError, "no parameter 0"),
            ({"conv1_weight": -1}, ValueError, "'conv1_weight' must be a finite number >= 0, got -1"),
            ({"conv1_weight": float("nan")}, ValueError, "finite number"),
            ({"conv1_weight": True}, TypeError, "got True of type bool"),
            ({"conv1_weight": "0"}, TypeError, "type str"),
            ({"conv1_weight": lambda num_update: 1}, TypeError, "schedules need a MultiLRTrainer"),
            (["conv1_weight"], TypeError, r"dict of name to number, got \['conv1_weight'\]"),
        ],
        ids=lambda value: str(value).split(" at 0x")[0],  # the same in every process that collects them
    )
    @pytest.mark.parametrize("function", [symbolic.set_lr_mult, symbolic.set_wd_mult])
    def test_wrong_multipliers_raise_before_anything_changes(self, function, multipliers, error, match):
        module = ready()
        before = pickle.dumps(optimizer_of(module))
        if isinstance(multipliers, dict):
            multipliers = {"conv1_bias": 0.5, **multipliers}
        with pytest.raises(error, match=match):
            function(module, multipliers)
        assert pickle.dumps(optimizer_of(module)) == before

    def test_a_module_without_an_optimizer_raises(self):
        with pytest.raises(RuntimeError, match="this Module has no optimizer yet; call init_optimizer first"):
            symbolic.set_lr_mult(bound(), WEIGHT)
        with pytest.raises(RuntimeError, match="this BucketingModule has no optimizer yet"):
            symbolic.set_lr_mult(buckets(lambda key: ["a"]), {"a_weight": 0})

    def test_anything_but_a_module_or_its_optimizer_raises(self):
        net = mlp()
        with pytest.raises(TypeError, match="neither a Module nor an Optimizer"):
            symbolic.set_lr_mult(net, {"net_dense0_weight": 0})
        trainer = MultiLRTrainer(net, "sgd")
        with pytest.raises(ValueError, match=r"belongs to a Gluon Trainer.*trainer\.set_lr_mult"):
            symbolic.set_lr_mult(trainer.optimizer, {"net_dense0_weight": 0})
        with pytest.raises(ValueError, match="knows no parameter by name"):
            symbolic.set_lr_mult(mx.optimizer.create("sgd"), WEIGHT)

    def test_fixed_parameters_accept_only_0(self):
        module = ready(fixed_param_names=["conv1_weight"])
        with pytest.raises(ValueError, match="'conv1_weight' is in fixed_param_names, so 2 would have no effect"):
            symbolic.set_lr_mult(module, {"conv1_weight": 2})
        symbolic.set_lr_mult(module, WEIGHT)
        assert update(module) == {"conv1_bias"}

    def test_an_attribute_that_is_not_a_number_raises(self):
        module = bound(convolution(attr={"__lr_mult__": "much"}))
        module.init_optimizer(optimizer=mx.optimizer.create("sgd"))
        with pytest.raises(ValueError, match=r"attribute __lr_mult__ of 'conv1_weight'.*got 'much'"):
            symbolic.set_lr_mult(module, BIAS)


class TestSupported:
    """A multiplier that the optimizer ignores or fails at is refused; at 0, momentum gives a warning."""

    @pytest.mark.parametrize("number", [0, 0.5])
    def test_a_multiplier_that_the_optimizer_ignores_is_refused(self, number):
        with pytest.raises(ValueError, match="'conv1_weight' would have no effect: AdaDelta never asks"):
            symbolic.set_lr_mult(ready("adadelta"), {"conv1_weight": number})

    def test_an_optimizer_that_ignores_multipliers_accepts_1(self):
        module = ready("adadelta")
        symbolic.set_lr_mult(module, {"conv1_weight": 1})
        assert optimizer_of(module).lr_mult == {"conv1_weight": 1}

    def test_0_does_not_warn_before_the_first_update(self):
        module = ready(optimizer_params={"momentum": 0.9, "begin_num_update": 5})
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            symbolic.set_lr_mult(module, {**WEIGHT, "conv1_bias": 2})
        assert update(module) == {"conv1_bias"}

    @pytest.mark.parametrize("name", ["ftrl", "ftml", "sgld"])
    def test_0_is_refused_if_it_breaks_the_weight(self, name):
        module = ready(name)
        symbolic.set_lr_mult(module, {"conv1_weight": 0.5})
        with pytest.raises(ValueError, match="does not leave weights alone at 0"):
            symbolic.set_lr_mult(module, WEIGHT)
        assert optimizer_of(module).lr_mult == {"conv1_weight": 0.5}
        symbolic.set_wd_mult(module, WEIGHT)

    @pytest.mark.parametrize(
        "name", ["sgd", "nag", "adam", "adamw", "rmsprop", "signum", "nadam", "adagrad", "lamb", "lars"]
    )
    def test_0_is_accepted_if_it_holds_the_weight(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            module = ready(name)
            symbolic.set_lr_mult(module, {**WEIGHT, **BIAS})
            assert update(module) == set()

    @pytest.mark.parametrize("name", ["sgd", "nag", "lars"])
    def test_0_warns_of_momentum_built_up(self, name):
        module = ready(name, optimizer_params={"momentum": 0.9})
        update(module)
        counts = dict(optimizer_of(module)._index_update_count)
        with pytest.warns(UserWarning, match=r"moving 'conv1_weight' with the momentum.*fixed_param_names") as caught:
            symbolic.set_lr_mult(module, WEIGHT)
        assert caught[-1].filename == __file__
        assert optimizer_of(module)._index_update_count == counts
        assert "conv1_weight" in update(module, 1)

    def test_0_does_not_warn_without_momentum(self):
        module = ready()
        update(module)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            symbolic.set_lr_mult(module, WEIGHT)
        assert update(module) == {"conv1_bias"}

    def test_an_optimizer_that_cannot_be_tried_out_is_accepted(self):
        optimizer = mx.optimizer.create("groupadagrad", wd=0.1, param_idx2name={0: "a"})
        symbolic.set_lr_mult(optimizer, {"a": 0})
        assert optimizer.lr_mult == {"a": 0}

    def test_0_is_refused_if_weight_decay_ignores_the_learning_rate(self):
        class Decoupled(Optimizer):
            def create_state(self, index, weight):
                return None

            def update(self, index, weight, grad, state):
                self._update_count(index)
                weight[:] -= self._get_lr(index) * grad + 0.01 * weight

        with pytest.raises(ValueError, match=r"they move by 0\.01"):
            symbolic.set_lr_mult(ready(Decoupled(learning_rate=0.1)), WEIGHT)


@pytest.mark.slow
def test_parameter_servers_apply_what_was_set_before_init_optimizer_and_later_calls_raise():
    (printed,) = cluster.run(WORKER, workers=1)
    answer = json.loads(printed.strip().splitlines()[-1])
    assert answer["moved"] == ["conv1_bias"]
    assert "parameter servers update" in answer["set_lr_mult"]
    assert "parameter servers update" in answer["set_wd_mult"]
    assert answer["unchanged"]
