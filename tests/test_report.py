"""The table of groups, the reasons for a multiplier, and the learning rates for loggers."""

import struct

import mxnet as mx
import pytest
from gluoncv import model_zoo
from mxnet.gluon import nn
from mxnet.gluon.contrib.estimator import BatchBegin, Estimator
from tensorboardX import SummaryWriter
from tensorboardX.proto import event_pb2

from multitrainer import (
    MultiLRTrainer,
    ParamGroup,
    discriminative,
    freeze,
    gradual_unfreezing,
    layerwise_decay,
    no_weight_decay,
    report,
    unfreeze_at,
)
from report_support import build_trainer
from support import batches, mlp, snapshot, train


class TestSummary:
    def test_rows_are_aligned_and_count_what_trains(self):
        _, trainer = build_trainer(lambda net: net, lambda net: (net[0], 0), no_weight_decay)
        assert trainer.summary().splitlines() == [
            "group              parameters  values  lr_mult  learning rate    wd  state",
            "net                         1       8        1            0.1  0.01  trained",
            "0                           1      12        0              0  0.01  frozen",
            "0 no_weight_decay           1       4        0              0     0  frozen",
            "no_weight_decay             3      10        1            0.1     0  trained",
        ]

    def test_a_group_is_divided_once_its_multipliers_differ(self):
        net, trainer = build_trainer(lambda net: net)
        trainer.set_lr_mult({net[0]: 0.5})
        trainer.set_wd_mult({net[2].bias: 0})
        assert [line.split("  ")[0] for line in trainer.summary().splitlines()] == [
            "group",
            "net lr_mult=1 wd_mult=1",
            "net lr_mult=0.5 wd_mult=1",
            "net lr_mult=1 wd_mult=0",
        ]
        assert trainer.learning_rates == {"net lr_mult=1": 0.1, "net lr_mult=0.5": 0.05}

    def test_a_group_that_decides_nothing_shows_its_parameters_if_it_is_the_last(self):
        _, trainer = build_trainer(lambda net: net, lambda net: ParamGroup(net[0], name="body"))
        assert [line.split()[0] for line in trainer.summary().splitlines()] == ["group", "net", "body"]

    def test_values_are_unknown_while_a_shape_is_deferred(self):
        net = nn.Dense(2, prefix="net_")
        net.initialize()
        _, trainer = build_trainer(lambda net: net, net=net)
        assert trainer.summary().splitlines()[1].split() == ["net", "2", "?", "1", "0.1", "0.01", "trained"]
        assert trainer.explain("net_weight").startswith("net_weight: shape not known yet, trained\n")

    def test_large_counts_are_grouped_by_thousands(self):
        net = nn.Dense(50, in_units=40, prefix="net_")
        net.initialize()
        _, trainer = build_trainer(lambda net: net, net=net)
        assert trainer.summary().splitlines()[1].split()[2] == "2,050"

    @pytest.mark.slow
    def test_each_of_many_groups_has_a_row_and_columns_fit(self):
        net = model_zoo.get_model("resnet152_v1b", pretrained=False)
        net.initialize()
        net.hybridize()
        _, trainer = build_trainer(lambda net: layerwise_decay(net, 0.8), no_weight_decay, net=net)
        head, *rows = trainer.summary().splitlines()
        layers = [row for row in rows if "no_weight_decay" not in row]
        assert len(layers) == len(trainer.learning_rates) == 52
        assert layers[3].split()[:2] == ["stage2", "layer3"]
        assert {row.split()[-2] for row in rows if row not in layers} == {"0"}
        assert max(map(len, (head, *rows))) <= 100
        assert all(len(row[: head.index("parameters")].split()) <= 3 for row in rows)

    def test_names_are_log_keys(self):
        _, trainer = build_trainer(lambda net: discriminative(net, 0.1, 1))
        assert trainer.learning_rates == pytest.approx({"stage1": 0.01, "stage2": 0.1})


def test_members_of_groups_have_the_names_of_learning_rates():
    net = mlp()
    trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd")
    net[0].bias.lr_mult = 2
    members = report.members_of_groups(trainer._resolved, trainer._multipliers.trainable)
    assert members.keys() == trainer.learning_rates.keys() == {"net", "0 lr_mult=0.5", "0 lr_mult=2"}
    assert members["0 lr_mult=2"] == [net[0].bias]
    assert sum(map(len, members.values())) == len(trainer._multipliers.trainable)


class TestOwnOptimizers:
    """A group with an optimizer of its own is shown with its class, its rates and its scheduler."""

    def build(self, settings, *entries, name="head"):
        head = {"name": name, "optimizer": "adam", "optimizer_params": settings}
        return build_trainer(lambda net: net, *entries, lambda net: ParamGroup(net[2], **head))

    def test_summary(self):
        _, trainer = self.build({"wd": 0.5}, lambda net: (net[0], 0))
        assert trainer.summary().splitlines() == [
            "group  optimizer  parameters  values  lr_mult  learning rate    wd  state",
            "net    SGD                 2       8        1            0.1  0.01  trained",
            "0      SGD                 2      16        0              0  0.01  frozen",
            "head   Adam                2      10        1          0.001   0.5  trained",
        ]

    def test_parameters_of_one_group_under_two_optimizers_have_two_rows(self):
        net, trainer = build_trainer(
            lambda net: (net, 0.5), lambda net: ParamGroup(net[2].bias, optimizer_params={"learning_rate": 1})
        )
        assert trainer.learning_rates == {"net": 0.05, f"net {net[2].bias.name}": 0.5}

    def test_explain(self):
        _, trainer = self.build({"wd": 0.5})
        assert trainer.explain("net_dense1_bias").splitlines() == [
            "net_dense1_bias: 2, trained by Adam of group 'head'",
            "  learning rate 0.001 = 0.001 * lr_mult 1",
            "    the default; no entry sets it",
            "  weight decay 0.5 = 0.5 * wd_mult 1",
            "    the default; no entry sets it",
        ]
        assert trainer.explain("net_dense0_bias").startswith("net_dense0_bias: 4, trained by SGD of the trainer\n")

    def test_repr(self):
        _, trainer = self.build({})
        text = "(SGD, learning_rate=0.1, 'head': Adam, learning_rate=0.001, 2 groups, 6 parameters, 0 frozen)"
        assert repr(trainer) == f"MultiLRTrainer{text}"

    def test_repr_names_clipping_and_accumulation(self):
        trainer = MultiLRTrainer(mlp(), "sgd", {"learning_rate": 0.1}, max_grad_norm=0.5, accumulate=4)
        options = "max_grad_norm=0.5, accumulate=4"
        assert repr(trainer) == (f"MultiLRTrainer(SGD, learning_rate=0.1, {options}, 1 groups, 6 parameters, 0 frozen)")

    def test_planned_rates_follow_each_scheduler(self):
        scheduler = mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=1)
        net, trainer = self.build({"learning_rate": 1.0, "lr_scheduler": scheduler})
        train(net, trainer, batches(1))
        trainer.set_lr_mult({net[0]: lambda num_update: num_update})
        updates, lines = trainer._planned(range(4))
        assert list(updates) == [2, 3, 4, 5]
        assert dict(lines)["head"] == [1.0, 0.5, 0.5, 0.25]
        assert [rates for name, rates in lines if name != "head"] == [[0.1] * 4, [0.1 * n for n in updates]]
        assert trainer.learning_rates["head"] == 1.0


class TestExplain:
    def test_it_names_the_entry_that_decides_and_the_one_that_this_refines(self):
        _, trainer = build_trainer(
            lambda net: (net, 0.5),
            lambda net: ParamGroup(net[:2], lr_mult=0.25, name="body"),
            lambda net: (net[0], 0.1),
            no_weight_decay,
        )
        assert trainer.explain("net_dense0_bias") == (
            "net_dense0_bias: 4, trained\n"
            "  learning rate 0.01 = 0.1 * lr_mult 0.1\n"
            "    0.1 by entry 2 '0', which refines entry 1 'body' (0.25)\n"
            "  weight decay 0 = 0.01 * wd_mult 0\n"
            "    0 by entry 3 'no_weight_decay'"
        )
        assert "    0.5 by entry 0 'net'\n" in trainer.explain("net_dense1_weight")
        assert trainer.explain("net_dense1_weight").endswith("the default; no entry sets it")

    def test_it_names_entries_that_agree(self):
        _, trainer = build_trainer(
            lambda net: ParamGroup(net[:2], lr_mult=0.5, name="one"),
            lambda net: ParamGroup(net[1:], lr_mult=0.5, name="other"),
        )
        expected = "0.5 by entry 1 'other', which agrees with entry 0 'one' (0.5)"
        assert expected in trainer.explain("net_batchnorm0_beta")

    def test_it_says_if_the_multiplier_is_the_parameters_own(self):
        net = mlp()
        net[0].weight.lr_mult = 10
        _, trainer = build_trainer(lambda net: net, net=net)
        assert "    10, the Parameter's own; no entry sets it\n" in trainer.explain("net_dense0_weight")

    def test_it_shows_a_schedule_and_its_current_value(self):
        net, trainer = build_trainer(lambda net: net, lambda net: (net[0], unfreeze_at(3, 0.5)))
        shown = trainer.explain("net_dense0_weight")
        assert shown.startswith("net_dense0_weight: 4 x 3, frozen\n  learning rate 0 = 0.1 * lr_mult 0\n")
        assert "    unfreeze_at(3, lr_mult=0.5) by entry 1 '0'\n" in shown
        train(net, trainer, batches(2))
        assert "trained\n  learning rate 0.05 = 0.1 * lr_mult 0.5\n" in trainer.explain("net_dense0_weight")

    @pytest.mark.parametrize(
        "change",
        [
            lambda net, trainer: trainer.set_lr_mult({net[0]: 0.2}),
            lambda net, trainer: net[0].collect_params().setattr("lr_mult", 0.2),
            lambda net, trainer: trainer.optimizer.set_lr_mult({"net_dense0_weight": 0.2}),
        ],
    )
    def test_it_says_if_the_multiplier_was_set_since(self, change):
        net, trainer = build_trainer(lambda net: (net, 0.5), lambda net: (net[0], unfreeze_at(2)))
        change(net, trainer)
        train(net, trainer, batches(1))
        expected = "    0.2, set since the trainer was built with unfreeze_at(2) by entry 1 '0', which refines entry 0"
        assert expected in trainer.explain("net_dense0_weight")

    def test_it_shows_a_schedule_that_was_set_since(self):
        net, trainer = build_trainer(lambda net: (net, 0.5))
        trainer.set_lr_mult({net[0]: unfreeze_at(9)})
        expected = "    unfreeze_at(9), set since the trainer was built with 0.5 by entry 0 'net'"
        assert expected in trainer.explain("net_dense0_weight")
        freeze(net[2])
        assert "    0, set since the trainer was built with 0.5 by entry 0" in trainer.explain("net_dense1_bias")

    def test_it_shows_the_rate_of_the_next_update(self):
        scheduler = mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=0.8)
        net, trainer = build_trainer(lambda net: (net, 0.5), lr_scheduler=scheduler)
        for rate in (0.8, 0.4, 0.2):
            assert f"learning rate {rate / 2:g} = {rate:g} * lr_mult 0.5" in trainer.explain("net_dense0_weight")
            train(net, trainer, batches(1))

    def test_it_says_that_no_multiplier_moves_a_statistic(self):
        _, trainer = build_trainer(lambda net: net)
        assert trainer.explain("net_batchnorm0_running_mean") == (
            "net_batchnorm0_running_mean: 4, a statistic or a constant, which no multiplier moves"
        )

    def test_an_unknown_name_is_an_error_with_the_closest_ones(self):
        _, trainer = build_trainer(lambda net: net)
        with pytest.raises(ValueError, match=r"no parameter 'net_dense0_wieght'; the closest are 'net_dense0_weight'"):
            trainer.explain("net_dense0_wieght")


class TestLoggers:
    def test_an_estimator_shows_the_rates_of_each_batch(self):
        """An event handler sees the rates of every batch, before and after a stage is unfrozen."""

        class Rates(BatchBegin):
            def __init__(self):
                self.seen = []

            def batch_begin(self, estimator, *args, **kwargs):
                self.seen.append(estimator.trainer.learning_rates)

        net, trainer = build_trainer(lambda net: gradual_unfreezing([net[:2], net[2]], 2))
        handler = Rates()
        estimator = Estimator(net, mx.gluon.loss.L2Loss(), trainer=trainer, context=mx.cpu())
        data = [mx.nd.concat(*arrays, dim=0) for arrays in zip(*batches(4))]
        before = snapshot(net)
        loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(*data), 4)
        estimator.fit(loader, epochs=1, event_handlers=[handler])
        assert handler.seen == [{"stage1": 0, "stage2": 0.1}] * 2 + [{"stage1": 0.1, "stage2": 0.1}] * 2
        assert (snapshot(net)["net_dense0_weight"] != before["net_dense0_weight"]).any()

    def test_tensorboard_logs_the_rates_by_group(self, tmp_path):
        net, trainer = build_trainer(lambda net: gradual_unfreezing([net[:2], net[2]], 2))
        with SummaryWriter(str(tmp_path)) as writer:
            for step, batch in enumerate(batches(3)):
                for group, rate in trainer.learning_rates.items():
                    writer.add_scalar(f"learning_rate/{group}", rate, step)
                train(net, trainer, [batch])
        (file,) = tmp_path.iterdir()
        logged = [
            (event.step, value.tag, value.simple_value)
            for event in events(file.read_bytes())
            for value in event.summary.value
        ]
        assert logged == [
            (step, f"learning_rate/stage{stage}", pytest.approx(rate))
            for step, rates in enumerate([(0, 0.1), (0, 0.1), (0.1, 0.1)])
            for stage, rate in enumerate(rates, 1)
        ]


def events(data):
    """Yield the records of a TensorBoard file: a length, its checksum, an Event, its checksum."""
    while data:
        (length,) = struct.unpack_from("<Q", data)
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
