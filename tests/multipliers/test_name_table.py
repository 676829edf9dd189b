"""The table of multipliers by name that an optimizer falls back to."""

import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import Trainer

from multiplier_support import ALL_WEIGHTS, build, changed_by
from multitrainer import MultiLRTrainer
from multitrainer.multipliers.name_table import NameTable, explicit_multipliers, parse_multipliers
from support import backward, batches, mlp, train


def test_set_wd_mult_of_the_optimizer_is_refused_if_it_changes_parameters_it_does_not_name():
    net, trainer = build(wd=0.5)
    trainer.optimizer.set_wd_mult({"net_dense0_weight": 0.5})
    with pytest.raises(ValueError, match=r"weight decay of 'net_batchnorm0_beta' too.*trainer.set_wd_mult"):
        trainer.step(1)
    assert {param.wd_mult for param in net.collect_params().values()} == {1.0}
    assert changed_by(net, trainer) == ALL_WEIGHTS


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"net_dense0_wieght": 1}, "optimizer.set_lr_mult.*closest are 'net_dense0_weight'"),
        ({"net_dense0_weight": -1}, "finite number >= 0, got -1"),
        ({99: 1}, "no parameter 99"),
    ],
)
def test_invalid_entries_are_refused_and_removed(table, message):
    net, trainer = build()
    trainer.optimizer.set_lr_mult({"net_dense1_weight": 0.5, **table})
    backward(net, *batches(1)[0])
    with pytest.raises(ValueError, match=message):
        trainer.step(4)
    assert net[2].weight.lr_mult == 1
    trainer.step(4)


def test_a_schedule_is_refused():
    _, trainer = build()
    trainer.optimizer.set_lr_mult({"net_dense1_weight": lambda t: 1})
    with pytest.raises(TypeError, match="must be a number; a schedule goes to"):
        trainer.step(4)


def test_a_statistic_is_refused():
    _, trainer = build()
    trainer.optimizer.set_lr_mult({"net_batchnorm0_running_mean": 0})
    with pytest.raises(ValueError, match="'net_batchnorm0_running_mean' is a statistic"):
        trainer.step(1)


class TestTable:
    """What an optimizer without Parameters looks up: idx2name, lr_mult and wd_mult."""

    def test_holds_the_multipliers_by_name(self):
        net = mlp(batchnorm=False)
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "adam")
        trainer.set_wd_mult({"net_dense0_bias": 0})
        optimizer = trainer.optimizer
        assert optimizer.idx2name == dict(enumerate(sorted(net.collect_params().keys())))
        assert optimizer.lr_mult == {
            "net_dense0_weight": 0.5,
            "net_dense0_bias": 0.5,
            "net_dense1_weight": 1,
            "net_dense1_bias": 1,
        }
        assert optimizer.wd_mult["net_dense0_bias"] == 0
        net[2 - 1].weight.lr_mult = 7
        train(net, trainer, batches(1))
        assert optimizer.lr_mult["net_dense1_weight"] == 7

    def test_a_pickled_optimizer_looks_up_the_index_then_the_name(self):
        """See `Optimizer._get_lrs` in mxnet/optimizer/optimizer.py."""
        net = mlp(batchnorm=False)
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd", {"learning_rate": 1.0, "wd": 1.0})
        index = [param.name for param in trainer._params].index("net_dense0_weight")
        assert trainer.optimizer._get_lr(index) == 0.5
        pickled = pickle.loads(pickle.dumps(trainer.optimizer))
        assert pickled.param_dict == {}
        assert pickled._get_lr(index) == 0.5
        pickled.lr_mult[index] = 0.25
        assert pickled._get_lr(index) == 0.25
        net[0].weight.lr_mult = 0.75
        assert trainer.optimizer._get_lr(index) == 0.75

    def test_of_lars_is_kept_by_index_because_lars_reads_the_names(self):
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "lars", {"learning_rate": 1.0})
        index = [param.name for param in trainer._params].index("net_dense0_weight")
        assert trainer.optimizer.idx2name == {}
        assert pickle.loads(pickle.dumps(trainer.optimizer))._get_lr(index) == 0.5

    def test_entries_that_a_trainer_wrote_do_not_count_as_set_by_the_user(self):
        """An optimizer that was pickled or served another trainer keeps only what its user set since."""
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd")
        back = pickle.loads(pickle.dumps(trainer.optimizer))
        other = mlp(prefix="other_")
        MultiLRTrainer(other, back)
        assert {param.lr_mult for param in other.collect_params().values()} == {1.0}
        back = pickle.loads(pickle.dumps(trainer.optimizer))
        net[2].collect_params().setattr("grad_req", "null")
        back.set_lr_mult({"net_dense0_weight": 0.25})
        MultiLRTrainer(net, back)
        assert (net[0].weight.lr_mult, net[0].bias.lr_mult, net[2].weight.grad_req) == (0.25, 0.5, "null")

    def test_numbers_are_plain_floats(self):
        """They are pickled to servers, which may lack the module of a richer type."""
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], np.float32(0.5))], "sgd")
        assert {type(value) for value in trainer.optimizer.lr_mult.values()} == {float}


class TestRead:
    def build(self, optimizer="sgd"):
        net = mlp(batchnorm=False)
        trainer = Trainer(net.collect_params(), optimizer)
        return net, trainer.optimizer, NameTable(trainer._params, trainer.optimizer)

    def test_gives_nothing_if_nothing_was_written(self):
        net, _, table = self.build()
        net[0].weight.lr_mult = 0.5  # on the Parameter, not in the table
        assert table.read() == {}

    @pytest.mark.parametrize("optimizer", ["sgd", "lars"])
    def test_entries_by_name_and_by_index(self, optimizer):
        net, trained, table = self.build(optimizer)
        trained.lr_mult.update({0: 0.5, "net_dense1_weight": 2})  # the first by name is net_dense0_bias
        assert table.read() == {"lr_mult": {net[0].bias: 0.5, net[1].weight: 2}}
        trained.wd_mult[3] = 4
        assert table.read()["wd_mult"] == {net[1].weight: 4}

    def test_every_entry_of_a_table_that_set_lr_mult_replaced(self):
        net, optimizer, table = self.build()
        optimizer.set_lr_mult({"net_dense0_weight": 1})  # the number that it has
        assert table.read() == {"lr_mult": {net[0].weight: 1}}
        table.fill()
        assert table.read() == {}

    def test_only_the_changed_entries_of_a_table_that_was_updated(self):
        net, optimizer, table = self.build()
        optimizer.lr_mult.update({"net_dense0_weight": 1, "net_dense1_weight": 2})
        assert table.read() == {"lr_mult": {net[1].weight: 2}}

    def test_set_wd_mult_is_refused_if_it_changes_parameters_it_does_not_name(self):
        _, optimizer, table = self.build()
        optimizer.set_wd_mult({"net_dense0_weight": 0})
        with pytest.raises(ValueError, match="take the weight decay of 'net_dense0_bias' too"):
            table.read()
        assert table.read() == {}
        optimizer.wd_mult["net_dense0_weight"] = 0
        optimizer.wd_mult["net_dense0_bias"] = 2
        assert set(table.read()["wd_mult"].values()) == {0, 2}

    def test_set_wd_mult_is_read_if_what_it_does_not_name_has_no_weight_decay_already(self):
        net, optimizer, table = self.build()
        for layer in net:
            layer.bias.wd_mult = 0
        table.fill()
        optimizer.set_wd_mult({"net_dense0_weight": 0.5, "net_dense1_weight": 1})
        assert table.read() == {"wd_mult": {net[0].weight: 0.5}}

    def test_an_optimizer_of_another_trainer_is_refused(self):
        _, optimizer, table = self.build()
        Trainer(mlp(batchnorm=False).collect_params(), optimizer)
        with pytest.raises(RuntimeError, match="given to another Trainer"):
            table.read()


class TestParse:
    def test_an_index_must_be_that_of_a_parameter(self):
        params = list(mlp(batchnorm=False).collect_params().values())
        assert parse_multipliers({0: 2, 3: 0.5}, params, "x") == {params[0]: 2, params[3]: 0.5}
        for index in (-1, 4):
            with pytest.raises(ValueError, match=f"x: this trainer has no parameter {index}"):
                parse_multipliers({index: 1}, params, "x")


class TestExplicit:
    """What the user set on a ready-made optimizer, without what MXNet or a trainer added."""

    def test_leaves_out_the_zeros_of_mxnet(self):
        names = dict(enumerate(["fc_weight", "fc_bias", "bn_gamma", "bn_beta"]))
        optimizer = mx.optimizer.SGD(param_idx2name=names)
        assert explicit_multipliers(optimizer, "wd_mult") == {}
        optimizer.set_wd_mult({"fc_weight": 0, "bn_gamma": 0, "bn_beta": 0.5, "other_bias": 0})
        assert optimizer.wd_mult["fc_bias"] == 0
        expected = {"fc_weight": 0, "bn_gamma": 0, "bn_beta": 0.5, "other_bias": 0}
        assert explicit_multipliers(optimizer, "wd_mult") == expected
        optimizer.set_lr_mult({"fc_bias": 0})
        assert explicit_multipliers(optimizer, "lr_mult") == {"fc_bias": 0}

    def test_leaves_out_what_a_trainer_of_an_earlier_version_wrote(self):
        """Pickled optimizers hold it under this name."""
        optimizer = mx.optimizer.SGD()
        optimizer.lr_mult = {"fc_weight": 0.5, "fc_bias": 2}
        optimizer._multitrainer_filled = {"lr_mult": {"fc_weight": 0.5, "fc_bias": 0.5}}
        assert explicit_multipliers(optimizer, "lr_mult") == {"fc_bias": 2}

    def test_leaves_out_what_a_trainer_wrote(self):
        _, trainer = build(lambda net: [net, (net[0], 0.5)])
        assert explicit_multipliers(trainer.optimizer, "lr_mult") == {}
        trainer.optimizer.lr_mult["net_dense1_bias"] = 3
        assert explicit_multipliers(trainer.optimizer, "lr_mult") == {"net_dense1_bias": 3}


@pytest.mark.parametrize("field", ["lr_mult", "wd_mult"])
def test_an_interrupted_fill_can_be_repeated(field):
    """Ctrl-C can come between any two statements; here it comes when a table of the optimizer is replaced."""
    net, trainer = build(wd=0.1)

    class Interrupting(type(trainer.optimizer)):
        def __setattr__(self, name, value):
            if name == field:
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    kind, trainer.optimizer.__class__ = type(trainer.optimizer), Interrupting
    with pytest.raises(KeyboardInterrupt):
        trainer.set_lr_mult({net[0]: 0.5})
    trainer.optimizer.__class__ = kind
    trainer.set_lr_mult({net[2]: 0})
    assert changed_by(net, trainer) == ALL_WEIGHTS - {"net_dense1_weight", "net_dense1_bias"}
    assert (net[0].weight.lr_mult, trainer.optimizer.lr_mult["net_dense0_weight"]) == (0.5, 0.5)
