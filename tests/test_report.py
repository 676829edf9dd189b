"""What is shown: a table of many groups, the reasons for a multiplier, the plot; and what loggers are fed with."""

import struct
import sys

import matplotlib
import mxnet as mx
import numpy as np
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
    plot_learning_rates,
    unfreeze_at,
)
from support import batches, mlp, same, snapshot, train

matplotlib.use("Agg")


def build(*entries, net=None, **params):
    """Return a network and a trainer of what ``entries`` make of it; ``params`` are the optimizer's."""
    net = net or mlp()
    params = params if "lr_scheduler" in params else {"learning_rate": 0.1, **params}
    groups = [entry(net) for entry in entries]
    groups = [group for entry in groups for group in (entry if isinstance(entry, list) else [entry])]
    return net, MultiLRTrainer(groups, "sgd", {"wd": 0.01, **params})


class TestSummaryOfManyGroups:
    @pytest.mark.slow
    def test_one_row_a_group_and_columns_that_fit(self):
        net = model_zoo.get_model("resnet152_v1b", pretrained=False)
        net.initialize()
        net.hybridize()
        _, trainer = build(lambda net: layerwise_decay(net, 0.8), no_weight_decay, net=net)
        head, *rows = trainer.summary().splitlines()
        layers = [row for row in rows if "no_weight_decay" not in row]
        assert len(layers) == len(trainer.learning_rates) == 52
        assert layers[3].split()[:2] == ["stage2", "layer3"]
        assert {row.split()[-2] for row in rows if row not in layers} == {"0"}
        assert max(map(len, (head, *rows))) <= 100
        assert all(len(row[: head.index("parameters")].split()) <= 3 for row in rows)

    def test_names_are_log_keys(self):
        _, trainer = build(lambda net: discriminative(net, 0.1, 1))
        assert trainer.learning_rates == pytest.approx({"stage1": 0.01, "stage2": 0.1})


class TestExplain:
    def test_the_entry_that_decides_and_the_one_it_refines(self):
        _, trainer = build(
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

    def test_entries_that_agree(self):
        _, trainer = build(
            lambda net: ParamGroup(net[:2], lr_mult=0.5, name="one"),
            lambda net: ParamGroup(net[1:], lr_mult=0.5, name="other"),
        )
        expected = "0.5 by entry 1 'other', which agrees with entry 0 'one' (0.5)"
        assert expected in trainer.explain("net_batchnorm0_beta")

    def test_the_parameters_own(self):
        net = mlp()
        net[0].weight.lr_mult = 10
        _, trainer = build(lambda net: net, net=net)
        assert "    10, the Parameter's own; no entry sets it\n" in trainer.explain("net_dense0_weight")

    def test_a_schedule_and_what_it_says_now(self):
        net, trainer = build(lambda net: net, lambda net: (net[0], unfreeze_at(3, 0.5)))
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
    def test_what_was_set_since(self, change):
        net, trainer = build(lambda net: (net, 0.5), lambda net: (net[0], unfreeze_at(2)))
        change(net, trainer)
        train(net, trainer, batches(1))
        expected = "    0.2, set since the trainer was built with unfreeze_at(2) by entry 1 '0', which refines entry 0"
        assert expected in trainer.explain("net_dense0_weight")

    def test_a_schedule_that_was_set_since(self):
        net, trainer = build(lambda net: (net, 0.5))
        trainer.set_lr_mult({net[0]: unfreeze_at(9)})
        expected = "    unfreeze_at(9), set since the trainer was built with 0.5 by entry 0 'net'"
        assert expected in trainer.explain("net_dense0_weight")
        freeze(net[2])
        assert "    0, set since the trainer was built with 0.5 by entry 0" in trainer.explain("net_dense1_bias")

    def test_in_step_with_the_lr_scheduler(self):
        scheduler = mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=0.8)
        net, trainer = build(lambda net: (net, 0.5), lr_scheduler=scheduler)
        for rate in (0.8, 0.4, 0.2):
            assert f"learning rate {rate / 2:g} = {rate:g} * lr_mult 0.5" in trainer.explain("net_dense0_weight")
            train(net, trainer, batches(1))

    def test_what_no_multiplier_moves(self):
        net = mlp()
        net.initialize(force_reinit=True)
        _, trainer = build(lambda net: net, net=net)
        assert trainer.explain("net_batchnorm0_running_mean") == (
            "net_batchnorm0_running_mean: 4, a statistic or a constant, which no multiplier moves"
        )

    def test_unknown_names(self):
        _, trainer = build(lambda net: net)
        with pytest.raises(ValueError, match=r"no parameter 'net_dense0_wieght'; the closest are 'net_dense0_weight'"):
            trainer.explain("net_dense0_wieght")


def drawn(ax):
    return {line.get_label(): line.get_ydata() for line in ax.get_lines()}


class TestPlot:
    def test_draws_what_training_then_does(self):
        def run(planned):
            groups = lambda net: gradual_unfreezing([net[:2], net[2]], 3, lr_mult=0.5)  # noqa: E731
            scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=1.0)  # keeps count
            net, trainer = build(groups, lr_scheduler=scheduler)
            history, rates = train(net, trainer, batches(1)), []
            lines = drawn(plot_learning_rates(trainer, 5)) if planned else None
            for batch in batches(5, seed=7):
                rates.append(trainer.learning_rates)
                history += train(net, trainer, [batch])
            return history, rates, lines

        history, rates, lines = run(planned=True)
        assert same(history, run(planned=False)[0])  # drawing changed nothing
        assert lines.keys() == {"stage1", "stage2"}
        for name, line in lines.items():
            np.testing.assert_allclose(np.nan_to_num(line), [rate[name] for rate in rates], rtol=1e-12)
        assert np.isnan(lines["stage1"][:2]).all()
        assert not np.isnan(lines["stage1"][2:]).any()

    def test_a_schedule_that_counts_is_copied(self):
        halves = mx.lr_scheduler.FactorScheduler(step=1, factor=0.5, base_lr=1)
        _, trainer = build(lambda net: net, lambda net: (net[0], halves))
        state = dict(vars(halves))
        line = drawn(plot_learning_rates(trainer, 4))["0"]
        assert list(line) == pytest.approx([0.1, 0.05, 0.025, 0.0125])
        assert vars(halves) == state

    def test_axes_and_scale(self):
        _, trainer = build(lambda net: discriminative(net, 0.5, 1))
        ax = matplotlib.pyplot.figure().add_subplot()
        assert plot_learning_rates(trainer, 3, ax=ax) is ax
        assert ax.get_yscale() == "linear"
        assert list(ax.get_lines()[0].get_xdata()) == [1, 2, 3]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("update", "learning rate")
        _, trainer = build(lambda net: discriminative(net, 0.01, 1))
        assert plot_learning_rates(trainer, 3).get_yscale() == "log"

    def test_parameters_of_a_group_that_part_later(self):
        net, trainer = build(lambda net: net)
        trainer.set_lr_mult({net[0]: lambda t: 1.0 if t < 3 else 2.0})
        lines = drawn(plot_learning_rates(trainer, 3))
        assert len(lines) == 2
        assert sorted(line[2] for line in lines.values()) == pytest.approx([0.1, 0.2])

    def test_many_groups(self):
        net = nn.HybridSequential(prefix="net_")
        net.add(*(nn.Dense(2, in_units=2) for _ in range(50)))
        net.initialize()
        _, trainer = build(lambda net: layerwise_decay(net, 0.9), net=net)
        ax = plot_learning_rates(trainer, 3)
        assert len(drawn(ax)) == 50
        shown = [text.get_text() for text in ax.get_legend().get_texts()]
        assert (len(shown), shown[0], shown[-1]) == (20, "stage1", "stage50")
        assert ax.get_legend().get_title().get_text() == "20 of 50 groups"
        assert len({matplotlib.colors.to_hex(line.get_color()) for line in ax.get_lines()}) == 50

    def test_refused(self):
        net, trainer = build(lambda net: net)
        for bad in (0, -1, 2.5, True, "3"):
            with pytest.raises(ValueError, match="num_updates must be a whole number above 0"):
                plot_learning_rates(trainer, bad)
        with pytest.raises(TypeError, match="trainer must be a MultiLRTrainer, got Trainer"):
            plot_learning_rates(mx.gluon.Trainer(mlp().collect_params(), "sgd"), 3)

        class Uncopied:
            def __call__(self, num_update):
                return 1

            def __deepcopy__(self, memo):
                raise RuntimeError("no")

        trainer.set_lr_mult({net[0]: Uncopied()})
        with pytest.raises(TypeError, match=r"cannot be copied \(no\)"):
            plot_learning_rates(trainer, 3)

    def test_without_matplotlib(self, monkeypatch):
        _, trainer = build(lambda net: net)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'multitrainer\[plot\]'"):
            plot_learning_rates(trainer, 3)


class TestLoggers:
    def test_estimator(self):
        """A handler of one's own sees the rates of every batch, with a stage that is unfrozen in mid-training."""

        class Rates(BatchBegin):
            def __init__(self):
                self.seen = []

            def batch_begin(self, estimator, *args, **kwargs):
                self.seen.append(estimator.trainer.learning_rates)

        net, trainer = build(lambda net: gradual_unfreezing([net[:2], net[2]], 2))
        handler = Rates()
        estimator = Estimator(net, mx.gluon.loss.L2Loss(), trainer=trainer, context=mx.cpu())
        data = [mx.nd.concat(*arrays, dim=0) for arrays in zip(*batches(4))]
        before = snapshot(net)
        loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(*data), 4)
        estimator.fit(loader, epochs=1, event_handlers=[handler])
        assert handler.seen == [{"stage1": 0, "stage2": 0.1}] * 2 + [{"stage1": 0.1, "stage2": 0.1}] * 2
        assert (snapshot(net)["net_dense0_weight"] != before["net_dense0_weight"]).any()

    def test_tensorboard(self, tmp_path):
        net, trainer = build(lambda net: gradual_unfreezing([net[:2], net[2]], 2))
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


def test_groups_named_by_hand_and_by_recipes():
    _, trainer = build(lambda net: ParamGroup(net, name="stage1"), lambda net: discriminative(net, 0.1, 1))
    assert [group.name for group in trainer.groups] == ["stage1", "net stage1", "stage2"]
