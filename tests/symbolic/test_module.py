"""Modules whose multipliers merge, and multipliers that come back from exported networks."""

import json
import os
import pickle
import socket
import subprocess
import sys
import warnings

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import SymbolBlock, Trainer, nn
from mxnet.optimizer import Optimizer

from multitrainer import MultiLRTrainer, freeze, symbolic, unfreeze
from support import CONTEXTS, PATIENCE, backward, batches, mlp, moved, same, snapshot, train, weights

# -- the convolution of the seed note ---------------------------------------------------------------------------------


def convolution(**attributes):
    """Return the symbol of a convolution of one filter, with a loss."""
    weight = mx.sym.Variable("conv1_weight", **attributes)
    net = mx.sym.Convolution(mx.sym.Variable("data"), weight, name="conv1", kernel=(3, 3), num_filter=1)
    return mx.sym.LinearRegressionOutput(mx.sym.flatten(net), mx.sym.Variable("label"))


def bound(symbol=None, context=None, shape=(1, 3, 3), **kwargs):
    symbol = convolution() if symbol is None else symbol
    module = mx.mod.Module(symbol, label_names=["label"], context=context or mx.cpu(), **kwargs)
    size = len(context or [0])
    module.bind([("data", (size, *shape))], [("label", (size, 1))])
    mx.random.seed(7)
    module.init_params(mx.init.Uniform(0.1))
    return module


def ready(optimizer="sgd", kvstore="local", context=None, symbol=None, optimizer_params=None, **kwargs):
    module = bound(symbol, context, **kwargs)
    optimizer_params = {"learning_rate": 0.05, **(optimizer_params or {})}
    module.init_optimizer(kvstore, optimizer, optimizer_params)
    return module


def arrays(module):
    return {name: array.asnumpy() for name, array in module.get_params()[0].items()}


def update(module, count=4, shape=(1, 3, 3), size=1):
    """Make ``count`` updates; return the parameters that moved."""
    before = arrays(module)
    batch = mx.io.DataBatch([mx.nd.ones((size, *shape))], [mx.nd.full((size, 1), -2)])
    for _ in range(count):
        module.forward_backward(batch)
        module.update()
    return moved(before, arrays(module))


def output(module):
    batch = mx.io.DataBatch([mx.nd.ones((1, 1, 3, 3))], [mx.nd.full((1, 1), -2)])
    module.forward(batch, is_train=False)
    return float(module.get_outputs()[0].asscalar())


def optimizer_of(module):
    return module._optimizer


WEIGHT, BIAS = {"conv1_weight": 0}, {"conv1_bias": 0}


class TestConvolution:
    """Four updates of a convolution, frozen one parameter at a time or both at once."""

    @pytest.mark.parametrize("calls", [[WEIGHT, BIAS], [BIAS, WEIGHT], [{**WEIGHT, **BIAS}]], ids=str)
    def test_stays(self, calls):
        module = ready()
        for multipliers in calls:
            symbolic.set_lr_mult(module, multipliers)
        before = output(module)
        assert update(module) == set()
        assert output(module) == before

    def test_the_other_one_moves(self):
        module = ready()
        symbolic.set_lr_mult(module, WEIGHT)
        assert update(module) == {"conv1_bias"}

    def test_stock_forgets_the_first_call(self):
        module = ready()
        before = output(module)
        optimizer_of(module).set_lr_mult(WEIGHT)
        optimizer_of(module).set_lr_mult(BIAS)
        assert update(module) == {"conv1_weight"}
        assert abs(output(module) - before) > 1

    def test_half_a_multiplier_is_half_the_way(self):
        full, half = ready(), ready()
        symbolic.set_lr_mult(half, {"conv1_bias": 0.5, "conv1_weight": 0})
        start = arrays(full)["conv1_bias"]
        update(full, 1)
        update(half, 1)
        ratio = (arrays(half)["conv1_bias"] - start) / (arrays(full)["conv1_bias"] - start)
        assert ratio == pytest.approx(0.5)


class TestRungs:
    """param_dict, the index, the name: where `_get_lr` looks under Module, with updates to prove it."""

    @pytest.mark.parametrize("kvstore", ["local", "device", None])
    @pytest.mark.parametrize("devices", [1, 2])
    def test_every_way_of_updating_finds_the_name(self, kvstore, devices):
        module = ready(kvstore=kvstore, context=[mx.cpu(i) for i in range(devices)])
        symbolic.set_lr_mult(module, WEIGHT)
        symbolic.set_lr_mult(module, {"conv1_bias": 2})
        assert update(module, size=devices) == {"conv1_bias"}

    def test_pickled_optimizer(self):
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
        assert copied._get_lr(99) == 1  # nobody knows it

    def test_an_entry_by_index_does_not_hide_the_name(self):
        module = ready()
        index = {name: index for index, name in optimizer_of(module).idx2name.items()}["conv1_weight"]
        optimizer_of(module).set_lr_mult({index: 3})
        symbolic.set_lr_mult(module, BIAS)
        assert optimizer_of(module)._get_lr(index) == pytest.approx(0.15)
        symbolic.set_lr_mult(module, WEIGHT)
        assert optimizer_of(module)._get_lr(index) == 0


class TestMerging:
    """Nothing that was said before, by a call, a symbol or MXNet's defaults, is lost."""

    def test_symbols(self):
        module = ready(symbol=convolution(lr_mult=0, wd_mult=3))
        symbolic.set_lr_mult(module, {"conv1_bias": 2})
        symbolic.set_wd_mult(module, {"conv1_bias": 4})
        assert optimizer_of(module).lr_mult == {"conv1_weight": 0, "conv1_bias": 2}
        assert optimizer_of(module).wd_mult == {"conv1_weight": 3, "conv1_bias": 4}
        assert update(module) == {"conv1_bias"}

    def test_symbols_that_a_ready_optimizer_was_not_shown(self):
        module = bound(convolution(lr_mult=0))
        module.init_optimizer(optimizer=mx.optimizer.create("sgd", learning_rate=0.05))
        symbolic.set_lr_mult(module, {"conv1_bias": 2})
        assert update(module) == {"conv1_bias"}
        symbolic.set_lr_mult(module, {"conv1_weight": 1})
        symbolic.set_lr_mult(module, {})
        assert update(module) == {"conv1_weight", "conv1_bias"}

    @pytest.mark.parametrize(("name", "gamma"), [("sgd", 1), ("lars", 0)])
    def test_default_weight_decay(self, name, gamma):
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


# -- more than one Module ---------------------------------------------------------------------------------------------


def layer(data, name):
    return mx.sym.FullyConnected(data, name=name, num_hidden=1, flatten=False)


def buckets(names_of):
    """Return a BucketingModule; ``names_of`` says which layers a bucket has."""

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
    def test_buckets_share_multipliers_also_those_made_later(self):
        module = buckets(lambda key: ["a", "b"])
        module.init_optimizer()
        update_bucket(module, 3)
        symbolic.set_lr_mult(module, {"a_weight": 0})
        symbolic.set_lr_mult(module, {"a_bias": 0})
        for key in (4, 3, 2):
            assert update_bucket(module, key) == {"b_weight", "b_bias"}

    def test_buckets_whose_indices_stand_for_other_parameters(self):
        """Under stock, bucket 1 gets what was said of the first parameters: its own are b's."""
        module = buckets(lambda key: ["a", "b"] if key == 4 else ["b"])
        module.init_optimizer()
        update_bucket(module, 1)
        with pytest.raises(ValueError, match=r"takes parameter 0, 'b_weight', for 'a_weight'.*mx\.kv\.create"):
            symbolic.set_lr_mult(module, {"a_weight": 0, "a_bias": 0})
        optimizer = module._curr_module._optimizer
        optimizer.set_lr_mult({"a_weight": 0, "a_bias": 0})
        assert update_bucket(module, 1) == set()

    def test_the_cure_for_that(self):
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
    def test_each_name_goes_to_the_module_that_holds_it(self):
        module = chain()
        module.init_optimizer()
        symbolic.set_lr_mult(module, {"one_weight": 0, "two_bias": 0})
        symbolic.set_lr_mult(module, {"one_bias": 2})
        assert update(module, shape=(3,)) == {"one_bias", "two_weight"}
        assert [set(optimizer_of(part).lr_mult) for part in module._modules] == [
            {"one_weight", "one_bias"},
            {"two_bias"},
        ]

    def test_one_optimizer_for_both_looks_under_wrong_names(self):
        module = chain()
        module.init_optimizer(optimizer=mx.optimizer.create("sgd"))
        with pytest.raises(ValueError, match=r"takes parameter 0, 'two_weight', for 'one_weight'"):
            symbolic.set_lr_mult(module, {"one_weight": 0})

    def test_nested_chain_and_python_module(self):
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


# -- what is refused --------------------------------------------------------------------------------------------------


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
    def test_before_anything_changes(self, function, multipliers, error, match):
        module = ready()
        before = pickle.dumps(optimizer_of(module))
        if isinstance(multipliers, dict):
            multipliers = {"conv1_bias": 0.5, **multipliers}
        with pytest.raises(error, match=match):
            function(module, multipliers)
        assert pickle.dumps(optimizer_of(module)) == before

    def test_no_optimizer_yet(self):
        with pytest.raises(RuntimeError, match="this Module has no optimizer yet; call init_optimizer first"):
            symbolic.set_lr_mult(bound(), WEIGHT)
        with pytest.raises(RuntimeError, match="this BucketingModule has no optimizer yet"):
            symbolic.set_lr_mult(buckets(lambda key: ["a"]), {"a_weight": 0})

    def test_what_is_no_module(self):
        net = mlp()
        with pytest.raises(TypeError, match="neither a Module nor an Optimizer"):
            symbolic.set_lr_mult(net, {"net_dense0_weight": 0})
        trainer = MultiLRTrainer(net, "sgd")
        with pytest.raises(ValueError, match=r"belongs to a Gluon Trainer.*trainer\.set_lr_mult"):
            symbolic.set_lr_mult(trainer.optimizer, {"net_dense0_weight": 0})
        with pytest.raises(ValueError, match="knows no parameter by name"):
            symbolic.set_lr_mult(mx.optimizer.create("sgd"), WEIGHT)

    def test_fixed_parameters(self):
        module = ready(fixed_param_names=["conv1_weight"])
        with pytest.raises(ValueError, match="'conv1_weight' is in fixed_param_names, so 2 would have no effect"):
            symbolic.set_lr_mult(module, {"conv1_weight": 2})
        symbolic.set_lr_mult(module, WEIGHT)
        assert update(module) == {"conv1_bias"}

    def test_attribute_that_is_no_number(self):
        module = bound(convolution(attr={"__lr_mult__": "much"}))
        module.init_optimizer(optimizer=mx.optimizer.create("sgd"))
        with pytest.raises(ValueError, match=r"attribute __lr_mult__ of 'conv1_weight'.*got 'much'"):
            symbolic.set_lr_mult(module, BIAS)


class TestHonoured:
    """A multiplier that an optimizer ignores, or makes nan of, is refused; momentum is told of."""

    @pytest.mark.parametrize("number", [0, 0.5])
    def test_ignored(self, number):
        with pytest.raises(ValueError, match="'conv1_weight' would have no effect: AdaDelta never asks"):
            symbolic.set_lr_mult(ready("adadelta"), {"conv1_weight": number})

    @pytest.mark.parametrize("name", ["ftrl", "ftml", "sgld"])
    def test_zero_that_breaks(self, name):
        module = ready(name)
        symbolic.set_lr_mult(module, {"conv1_weight": 0.5})
        with pytest.raises(ValueError, match="does not leave weights alone at 0"):
            symbolic.set_lr_mult(module, WEIGHT)
        assert optimizer_of(module).lr_mult == {"conv1_weight": 0.5}
        symbolic.set_wd_mult(module, WEIGHT)

    @pytest.mark.parametrize("name", ["sgd", "nag", "adam", "rmsprop", "signum", "nadam", "adagrad", "lamb", "lars"])
    def test_zero_that_holds(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            module = ready(name)
            symbolic.set_lr_mult(module, {**WEIGHT, **BIAS})
            assert update(module) == set()

    @pytest.mark.parametrize("name", ["sgd", "nag", "lars"])
    def test_momentum_already_built_up(self, name):
        module = ready(name, optimizer_params={"momentum": 0.9})
        update(module)
        counts = dict(optimizer_of(module)._index_update_count)
        with pytest.warns(UserWarning, match=r"goes on moving 'conv1_weight' with the momentum.*fixed_param_names"):
            symbolic.set_lr_mult(module, WEIGHT)
        assert optimizer_of(module)._index_update_count == counts
        assert "conv1_weight" in update(module, 1)

    def test_no_warning_where_there_is_no_momentum(self):
        module = ready()
        update(module)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            symbolic.set_lr_mult(module, WEIGHT)
        assert update(module) == {"conv1_bias"}

    def test_optimizer_that_fails_by_itself_is_believed(self):
        optimizer = mx.optimizer.create("groupadagrad", wd=0.1, param_idx2name={0: "a"})
        symbolic.set_lr_mult(optimizer, {"a": 0})
        assert optimizer.lr_mult == {"a": 0}

    def test_decay_that_goes_past_the_learning_rate(self):
        class Decoupled(Optimizer):
            def create_state(self, index, weight):
                return None

            def update(self, index, weight, grad, state):
                self._update_count(index)
                weight[:] -= self._get_lr(index) * grad + 0.01 * weight

        with pytest.raises(ValueError, match=r"they move by 0\.01"):
            symbolic.set_lr_mult(ready(Decoupled(learning_rate=0.1)), WEIGHT)


# -- parameter servers ------------------------------------------------------------------------------------------------


def worker():
    """Run as a worker: what is said before init_optimizer holds on the servers, later calls raise."""
    symbol = convolution()
    module = bound(symbol)
    optimizer = mx.optimizer.create("sgd", learning_rate=0.05, sym=symbol)
    symbolic.set_lr_mult(optimizer, {"conv1_weight": 0})
    symbolic.set_lr_mult(optimizer, {"conv1_bias": 2})
    module.init_optimizer("dist_sync", optimizer)
    before = dict(optimizer.lr_mult)
    answer = {"moved": sorted(update(module))}
    for function in (symbolic.set_lr_mult, symbolic.set_wd_mult):
        try:
            function(module, {"conv1_bias": 0})
        except RuntimeError as error:
            answer[function.__name__] = str(error)
    answer["unchanged"] = before == optimizer.lr_mult
    print(json.dumps(answer))


@pytest.mark.slow
def test_parameter_servers():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": port, "DMLC_INTERFACE": "lo"}
    shared.update(
        DMLC_NUM_SERVER="1",
        DMLC_NUM_WORKER="1",
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    code = "import multitrainer, mxnet"
    commands = {
        "scheduler": code,
        "server": code,
        "worker": "import multitrainer, test_symbolic; test_symbolic.worker()",
    }
    processes = {}
    try:
        for role, command in commands.items():
            environment = {**os.environ, **shared, "DMLC_ROLE": role}
            processes[role] = subprocess.Popen(
                [sys.executable, "-c", command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        out, errors = processes["worker"].communicate(timeout=PATIENCE)
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    assert processes["worker"].returncode == 0, errors
    answer = json.loads(out.strip().splitlines()[-1])
    assert answer["moved"] == ["conv1_bias"]
    assert "parameter servers update" in answer["set_lr_mult"]
    assert "parameter servers update" in answer["set_wd_mult"]
    assert answer["unchanged"]


# -- exported networks ------------------------------------------------------------------------------------------------


def export(net, folder):
    net.export(str(folder / "net"))
    return SymbolBlock.imports(str(folder / "net-symbol.json"), ["data"], str(folder / "net-0000.params"))


def hybrid(**kwargs):
    net = mlp(**kwargs)
    net.hybridize()
    return net


def multipliers(net):
    return {
        name: (p.lr_mult, p.wd_mult)
        for name, p in net.collect_params().items()
        if p.grad_req != "null" or p.lr_mult == 0
    }


SGD = ("sgd", {"learning_rate": 0.1, "wd": 0.01})


class TestRoundTrip:
    """A network trained with multipliers, exported, imported, trained on."""

    @pytest.mark.parametrize("head", [3, 0])
    def test_same_multipliers_same_trajectory(self, tmp_path, head):
        net = hybrid()
        trainer = MultiLRTrainer([net, (net[0], 0.5), (net[2], head)], *SGD)
        trainer.set_wd_mult({net[0].bias: 0})
        train(net, trainer, batches(2))
        imported = export(net, tmp_path)
        again = MultiLRTrainer(imported, *SGD)
        assert multipliers(imported) == multipliers(net)
        assert imported.collect_params()["net_dense0_weight"].lr_mult == 0.5
        assert imported.collect_params()["net_dense0_bias"].wd_mult == 0
        data = batches(3, seed=6)
        assert same(train(net, trainer, data), train(imported, again, data))

    def test_frozen_batchnorm_stays_on_its_statistics_and_nobody_is_warned(self, tmp_path):
        net = hybrid()
        trainer = MultiLRTrainer([net, (net[:2], 0)], *SGD)
        train(net, trainer, batches(2))
        imported = export(net, tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again = MultiLRTrainer(imported, *SGD)
        data = batches(3, seed=6)
        ours = train(imported, again, data)
        assert same(train(net, trainer, data), ours)
        assert moved(ours[0], ours[-1]) == {"net_dense1_weight", "net_dense1_bias"}

    def test_stock_forgets(self, tmp_path):
        net = hybrid()
        train(net, MultiLRTrainer([net, (net[0], 0)], *SGD), batches(1))
        imported = export(net, tmp_path)
        before = snapshot(imported)
        train(imported, Trainer(imported.collect_params(), *SGD), batches(1))
        assert "net_dense0_weight" in moved(before, snapshot(imported))

    def test_module_reads_what_gluon_exported(self, tmp_path):
        net = hybrid(batchnorm=False)
        trainer = MultiLRTrainer([net, (net[0], 0)], *SGD)
        train(net, trainer, batches(1))
        net.export(str(tmp_path / "net"))
        symbol, args, aux = mx.model.load_checkpoint(str(tmp_path / "net"), 0)
        loss = mx.sym.LinearRegressionOutput(symbol, mx.sym.Variable("label"))
        module = mx.mod.Module(loss, label_names=["label"])
        module.bind([("data", (1, 3))], [("label", (1, 2))])
        module.init_params(arg_params=args, aux_params=aux)
        module.init_optimizer()
        symbolic.set_lr_mult(module, {"net_dense1_bias": 0})
        before = arrays(module)
        module.forward_backward(mx.io.DataBatch([mx.nd.ones((1, 3))], [mx.nd.ones((1, 2))]))
        module.update()
        assert moved(before, arrays(module)) == {"net_dense1_weight"}


class TestWhoWins:
    """Symbols are the weakest voice."""

    @pytest.fixture
    def imported(self, tmp_path):
        net = hybrid(batchnorm=False)
        MultiLRTrainer([(net, 0.5)], *SGD)
        net(mx.nd.ones((1, 3)))
        return export(net, tmp_path)

    def test_symbol(self, imported):
        MultiLRTrainer(imported, *SGD)
        assert set(multipliers(imported).values()) == {(0.5, 1)}

    def test_group(self, imported):
        weight = imported.collect_params(".*weight")
        MultiLRTrainer([imported, (weight, 1)], *SGD)
        assert {p.lr_mult for p in weight.values()} == {1}
        assert imported.collect_params()["net_dense0_bias"].lr_mult == 0.5

    def test_ready_optimizer(self, imported):
        optimizer = mx.optimizer.create("sgd")
        optimizer.lr_mult["net_dense0_bias"] = 4
        MultiLRTrainer(imported, optimizer)
        assert imported.collect_params()["net_dense0_bias"].lr_mult == 4
        assert imported.collect_params()["net_dense1_bias"].lr_mult == 0.5

    def test_by_hand(self, imported):
        imported.collect_params()["net_dense0_bias"].lr_mult = 7
        MultiLRTrainer(imported, *SGD)
        assert imported.collect_params()["net_dense0_bias"].lr_mult == 7

    def test_only_once(self, imported):
        """A second trainer finds the multipliers that the first was told, 1 among them."""
        first = MultiLRTrainer(imported, *SGD)
        first.set_lr_mult({imported: 1})
        MultiLRTrainer(imported, *SGD)
        assert set(multipliers(imported).values()) == {(1, 1)}

    def test_a_trainer_that_could_not_be_made_has_not_read(self, imported):
        with pytest.raises(TypeError, match="nosuch"):
            MultiLRTrainer(imported, "sgd", {"nosuch": 1})
        assert set(multipliers(imported).values()) == {(1, 1)}
        MultiLRTrainer(imported, *SGD)
        assert set(multipliers(imported).values()) == {(0.5, 1)}

    def test_parameters_that_were_traced_themselves(self):
        """A SymbolBlock that borrows the Parameters of a live network: those decide, not the trace."""
        net = hybrid(batchnorm=False)
        net[0].weight.lr_mult = 0.5
        block = SymbolBlock(net(mx.sym.var("data")), mx.sym.var("data"), params=net.collect_params())
        net[0].weight.lr_mult = 1
        MultiLRTrainer(block, *SGD)
        assert net[0].weight.lr_mult == 1

    def test_optimizer_that_cannot_honour_it(self, imported):
        with pytest.raises(ValueError, match=r"lr_mult 0\.5 .* would have no effect"):
            MultiLRTrainer(imported, "adadelta")

    def test_bad_attribute(self):
        fc = mx.sym.FullyConnected(mx.sym.var("data"), mx.sym.var("w", lr_mult=-1), num_hidden=1, name="fc")
        block = SymbolBlock(fc, mx.sym.var("data"))
        for use in (lambda: MultiLRTrainer(block, *SGD), lambda: symbolic.restore_multipliers(block)):
            with pytest.raises(ValueError, match=r"attribute __lr_mult__ of 'w' must be .*, got '-1'"):
                use()

    def test_restore_for_stock(self, imported):
        symbolic.restore_multipliers(imported)
        assert set(multipliers(imported).values()) == {(0.5, 1)}


class TestExport:
    """What is exported are the multipliers of now, whenever the network was traced."""

    def written(self, net, folder):
        net.export(str(folder / "net"))
        nodes = json.loads((folder / "net-symbol.json").read_text())["nodes"]
        return {
            node["name"]: float(node["attrs"]["__lr_mult__"])
            for node in nodes
            if "__lr_mult__" in node.get("attrs", {})
        }

    def test_set_after_the_trace(self, tmp_path):
        net = hybrid(batchnorm=False)
        net(mx.nd.ones((1, 3)))
        net[0].weight.lr_mult = 0.25
        trainer = MultiLRTrainer([net, (net[1], 0.5)], *SGD)
        expected = {"net_dense0_weight": 0.25, "net_dense0_bias": 1, "net_dense1_weight": 0.5, "net_dense1_bias": 0.5}
        assert self.written(net, tmp_path) == expected
        trainer.set_lr_mult({net[1].bias: 2})
        assert self.written(net, tmp_path) == {**expected, "net_dense1_bias": 2}
        net[0].bias.lr_mult = 3
        train(net, trainer, batches(1))
        assert self.written(net, tmp_path) == {**expected, "net_dense1_bias": 2, "net_dense0_bias": 3}

    def test_schedule(self, tmp_path):
        net = hybrid(batchnorm=False)
        trainer = MultiLRTrainer([net, (net[0], lambda num_update: num_update)], *SGD)
        train(net, trainer, batches(2))
        assert self.written(net, tmp_path)["net_dense0_weight"] == 3

    def test_freeze_and_unfreeze_without_a_trainer(self, tmp_path):
        net = hybrid(batchnorm=False)
        net(mx.nd.ones((1, 3)))
        freeze(net[0], within=net)
        assert self.written(net, tmp_path)["net_dense0_weight"] == 0
        unfreeze(net[0], within=net)
        assert self.written(net, tmp_path)["net_dense0_weight"] == 1

    def test_imported_changed_and_exported_again(self, tmp_path):
        net = hybrid(batchnorm=False)
        net(mx.nd.ones((1, 3)))
        imported = export(net, tmp_path)
        trainer = MultiLRTrainer([(imported, 0.5)], *SGD)
        train(imported, trainer, batches(1))
        assert set(self.written(imported, tmp_path).values()) == {0.5}

    def test_around_an_imported_network(self, tmp_path):
        """The trace of what holds a SymbolBlock has copies of its variables."""
        inner = hybrid(batchnorm=False)
        inner(mx.nd.ones((1, 3)))
        imported = export(inner, tmp_path)
        net = nn.HybridSequential(prefix="outer_")
        with net.name_scope():
            net.add(imported, nn.Dense(2, in_units=2))
        net[1].initialize()
        net.hybridize()
        trainer = MultiLRTrainer([net, (imported, 0.5)], *SGD)
        train(net, trainer, batches(1))
        trainer.set_lr_mult({imported: 0.25})
        written = self.written(net, tmp_path)
        assert {name: value for name, value in written.items() if value != 0.25} == {
            "outer_dense0_weight": 1,
            "outer_dense0_bias": 1,
        }


class TestStatistics:
    """Auxiliary states of a symbol never get a gradient, whatever they are called."""

    def block(self):
        names = {key: mx.sym.var(f"odd_{key}") for key in ("gamma", "beta")}
        hidden = mx.sym.BatchNorm(
            mx.sym.var("data"), moving_mean=mx.sym.var("odd_m"), moving_var=mx.sym.var("odd_v"), name="odd", **names
        )
        out = mx.sym.FullyConnected(hidden, name="fc", num_hidden=2)
        block = SymbolBlock(out, mx.sym.var("data"))
        block.initialize(mx.init.One())
        for name in ("odd_m", "odd_v", "odd_beta", "fc_bias"):
            block.collect_params()[name].initialize(mx.init.One(), force_reinit=True)
        return block

    def test_under_a_trainer(self):
        block = self.block()
        trainer = MultiLRTrainer([(block, 0)], *SGD)
        trainer.set_lr_mult({block: 2})
        params = block.collect_params()
        assert {name for name, param in params.items() if param.grad_req == "null"} == {"odd_m", "odd_v"}
        train(block, trainer, batches(1))

    def test_without_a_trainer(self):
        block = self.block()
        freeze(block)
        unfreeze(block)
        assert block.collect_params()["odd_m"].grad_req == "null"


def test_backward_of_these_networks_moves_every_weight():
    net = hybrid()
    before = snapshot(net)
    backward(net, *batches(1)[0], CONTEXTS[:1])
    Trainer(net.collect_params(), *SGD).step(4)
    assert weights(moved(before, snapshot(net))) == weights(before)


def test_a_second_trainer_does_not_read_a_symbol_that_the_first_has_read():
    """A multiplier set back to 1 by hand since is the truth, not what the file said."""
    weight = mx.sym.Variable("fc_weight", lr_mult=0.5)
    symbol = mx.sym.FullyConnected(mx.sym.Variable("data"), weight, name="fc", num_hidden=1)
    block = mx.gluon.SymbolBlock(symbol, mx.sym.Variable("data"))
    block.initialize()
    param = block.collect_params()["fc_weight"]
    MultiLRTrainer(block, "sgd")
    assert param.lr_mult == 0.5
    param.lr_mult = 1
    MultiLRTrainer(block, "sgd")
    assert param.lr_mult == 1
