"""Multipliers come back from exported networks, and what is exported are the multipliers of now."""

import json
import warnings

import mxnet as mx
import pytest
from mxnet.gluon import SymbolBlock, Trainer, nn

from module_support import arrays
from multitrainer import MultiLRTrainer, freeze, symbolic, unfreeze
from multitrainer.symbolic import attributes
from support import batches, mlp, moved, same, snapshot, train


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
    def test_multipliers_and_trajectory_stay_the_same(self, tmp_path, head):
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

    def test_a_frozen_batchnorm_keeps_its_statistics_without_a_warning(self, tmp_path):
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

    def test_stock_trainer_ignores_the_attributes(self, tmp_path):
        net = hybrid()
        train(net, MultiLRTrainer([net, (net[0], 0)], *SGD), batches(1))
        imported = export(net, tmp_path)
        before = snapshot(imported)
        train(imported, Trainer(imported.collect_params(), *SGD), batches(1))
        assert "net_dense0_weight" in moved(before, snapshot(imported))

    def test_a_module_applies_the_multipliers_that_gluon_exported(self, tmp_path):
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


class TestPrecedence:
    """A multiplier in a symbol applies only if nothing else sets one."""

    @pytest.fixture
    def imported(self, tmp_path):
        net = hybrid(batchnorm=False)
        MultiLRTrainer([(net, 0.5)], *SGD)
        net(mx.nd.ones((1, 3)))
        return export(net, tmp_path)

    def test_the_symbol_alone(self, imported):
        MultiLRTrainer(imported, *SGD)
        assert set(multipliers(imported).values()) == {(0.5, 1)}

    def test_a_group_overrides_the_symbol(self, imported):
        weight = imported.collect_params(".*weight")
        MultiLRTrainer([imported, (weight, 1)], *SGD)
        assert {p.lr_mult for p in weight.values()} == {1}
        assert imported.collect_params()["net_dense0_bias"].lr_mult == 0.5

    def test_a_ready_optimizer_overrides_the_symbol(self, imported):
        optimizer = mx.optimizer.create("sgd")
        optimizer.lr_mult["net_dense0_bias"] = 4
        MultiLRTrainer(imported, optimizer)
        assert imported.collect_params()["net_dense0_bias"].lr_mult == 4
        assert imported.collect_params()["net_dense1_bias"].lr_mult == 0.5

    def test_an_assignment_overrides_the_symbol(self, imported):
        imported.collect_params()["net_dense0_bias"].lr_mult = 7
        MultiLRTrainer(imported, *SGD)
        assert imported.collect_params()["net_dense0_bias"].lr_mult == 7

    def test_a_symbol_is_read_only_once(self, imported):
        """A second trainer keeps the multipliers that the first one got, even if they are 1."""
        first = MultiLRTrainer(imported, *SGD)
        first.set_lr_mult({imported: 1})
        MultiLRTrainer(imported, *SGD)
        assert set(multipliers(imported).values()) == {(1, 1)}

    def test_a_trainer_that_fails_to_start_does_not_read_the_symbol(self, imported):
        with pytest.raises(TypeError, match="nosuch"):
            MultiLRTrainer(imported, "sgd", {"nosuch": 1})
        assert set(multipliers(imported).values()) == {(1, 1)}
        MultiLRTrainer(imported, *SGD)
        assert set(multipliers(imported).values()) == {(0.5, 1)}

    def test_parameters_of_a_live_network_override_its_trace(self):
        """The SymbolBlock shares the Parameters of the network that was traced."""
        net = hybrid(batchnorm=False)
        net[0].weight.lr_mult = 0.5
        block = SymbolBlock(net(mx.sym.var("data")), mx.sym.var("data"), params=net.collect_params())
        net[0].weight.lr_mult = 1
        MultiLRTrainer(block, *SGD)
        assert net[0].weight.lr_mult == 1

    def test_an_optimizer_that_ignores_the_multiplier_is_refused(self, imported):
        with pytest.raises(ValueError, match=r"lr_mult 0\.5 .* would have no effect"):
            MultiLRTrainer(imported, "adadelta")

    def test_an_attribute_out_of_range_raises(self):
        fc = mx.sym.FullyConnected(mx.sym.var("data"), mx.sym.var("w", lr_mult=-1), num_hidden=1, name="fc")
        block = SymbolBlock(fc, mx.sym.var("data"))
        for use in (lambda: MultiLRTrainer(block, *SGD), lambda: symbolic.restore_multipliers(block)):
            with pytest.raises(ValueError, match=r"attribute __lr_mult__ of 'w' must be .*, got '-1'"):
                use()

    def test_restore_multipliers_reads_the_symbol_once_for_stock(self, imported):
        symbolic.restore_multipliers(imported)
        assert set(multipliers(imported).values()) == {(0.5, 1)}
        imported.collect_params().setattr("lr_mult", 1)
        symbolic.restore_multipliers(imported)
        assert set(multipliers(imported).values()) == {(1, 1)}

    def test_restore_multipliers_keeps_an_assignment(self, imported):
        imported.collect_params()["net_dense0_bias"].lr_mult = 7
        symbolic.restore_multipliers(imported)
        assert imported.collect_params()["net_dense0_bias"].lr_mult == 7
        assert imported.collect_params()["net_dense1_bias"].lr_mult == 0.5


class TestExport:
    """`export` saves the current multipliers, whenever the network was traced."""

    def exported(self, net, folder):
        net.export(str(folder / "net"))
        nodes = json.loads((folder / "net-symbol.json").read_text())["nodes"]
        return {
            node["name"]: float(node["attrs"]["__lr_mult__"])
            for node in nodes
            if "__lr_mult__" in node.get("attrs", {})
        }

    def test_multipliers_set_after_the_trace_are_exported(self, tmp_path):
        net = hybrid(batchnorm=False)
        net(mx.nd.ones((1, 3)))
        net[0].weight.lr_mult = 0.25
        trainer = MultiLRTrainer([net, (net[1], 0.5)], *SGD)
        expected = {"net_dense0_weight": 0.25, "net_dense0_bias": 1, "net_dense1_weight": 0.5, "net_dense1_bias": 0.5}
        assert self.exported(net, tmp_path) == expected
        trainer.set_lr_mult({net[1].bias: 2})
        assert self.exported(net, tmp_path) == {**expected, "net_dense1_bias": 2}
        net[0].bias.lr_mult = 3
        train(net, trainer, batches(1))
        assert self.exported(net, tmp_path) == {**expected, "net_dense1_bias": 2, "net_dense0_bias": 3}

    def test_the_value_of_a_schedule_is_exported(self, tmp_path):
        net = hybrid(batchnorm=False)
        trainer = MultiLRTrainer([net, (net[0], lambda num_update: num_update)], *SGD)
        train(net, trainer, batches(2))
        assert self.exported(net, tmp_path)["net_dense0_weight"] == 3

    def test_freeze_and_unfreeze_are_exported_without_a_trainer(self, tmp_path):
        net = hybrid(batchnorm=False)
        net(mx.nd.ones((1, 3)))
        freeze(net[0], within=net)
        assert self.exported(net, tmp_path)["net_dense0_weight"] == 0
        unfreeze(net[0], within=net)
        assert self.exported(net, tmp_path)["net_dense0_weight"] == 1

    def test_an_imported_network_exports_its_new_multipliers(self, tmp_path):
        net = hybrid(batchnorm=False)
        net(mx.nd.ones((1, 3)))
        imported = export(net, tmp_path)
        trainer = MultiLRTrainer([(imported, 0.5)], *SGD)
        train(imported, trainer, batches(1))
        assert set(self.exported(imported, tmp_path).values()) == {0.5}

    def test_a_network_around_an_imported_one_exports_new_multipliers(self, tmp_path):
        """The trace of a Block that contains a SymbolBlock has copies of its variables."""
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
        exported = self.exported(net, tmp_path)
        assert {name: value for name, value in exported.items() if value != 0.25} == {
            "outer_dense0_weight": 1,
            "outer_dense0_bias": 1,
        }


class TestStatistics:
    """Auxiliary states of a symbol never get a gradient, whatever their names are."""

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

    def test_a_trainer_never_requests_their_gradient(self):
        block = self.block()
        trainer = MultiLRTrainer([(block, 0)], *SGD)
        trainer.set_lr_mult({block: 2})
        params = block.collect_params()
        assert {name for name, param in params.items() if param.grad_req == "null"} == {"odd_m", "odd_v"}
        train(block, trainer, batches(1))

    def test_unfreeze_never_requests_their_gradient(self):
        block = self.block()
        freeze(block)
        unfreeze(block)
        assert block.collect_params()["odd_m"].grad_req == "null"


def test_stock_moves_every_weight_of_these_networks():
    net = hybrid()
    before = snapshot(net)
    (after,) = train(net, Trainer(net.collect_params(), *SGD), batches(1))
    assert moved(before, after) == set(before)


def test_a_second_trainer_does_not_read_a_symbol_again():
    """A multiplier that was set back to 1 since counts, and not the one in the file."""
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


def test_record_changes_the_attributes_of_the_given_parameters_only():
    net = hybrid(batchnorm=False)
    symbol = net(mx.sym.var("data"))
    net.collect_params().setattr("lr_mult", 0.5)
    attributes.write_to_symbols([net[0].weight], [net])
    recorded = {name: values["__lr_mult__"] for name, values in symbol.attr_dict().items() if "__lr_mult__" in values}
    assert {name for name, value in recorded.items() if value == "0.5"} == {"net_dense0_weight"}
    attributes.write_to_symbols([])
    assert symbol.attr_dict()["net_dense0_bias"]["__lr_mult__"] == "1.0"
