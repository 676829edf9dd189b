"""The plot of learning rates draws what training then does, and changes nothing."""

import sys

import matplotlib
import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from multitrainer import discriminative, gradual_unfreezing, layerwise_decay, plot_learning_rates
from multitrainer.plotting import draw_learning_rates
from report_support import build_trainer
from support import batches, mlp, same, train

matplotlib.use("Agg")


def drawn(ax):
    return {line.get_label(): line.get_ydata() for line in ax.get_lines()}


def test_it_draws_the_rates_that_training_then_has():
    def run(planned):
        groups = lambda net: gradual_unfreezing([net[:2], net[2]], 3, lr_mult=0.5)  # noqa: E731
        scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=1.0)  # keeps count
        net, trainer = build_trainer(groups, lr_scheduler=scheduler)
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


def test_a_schedule_that_counts_its_calls_is_copied():
    halves = mx.lr_scheduler.FactorScheduler(step=1, factor=0.5, base_lr=1)
    _, trainer = build_trainer(lambda net: net, lambda net: (net[0], halves))
    state = dict(vars(halves))
    line = drawn(plot_learning_rates(trainer, 4))["0"]
    assert list(line) == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert vars(halves) == state


def test_axes_are_labelled_and_logarithmic_if_rates_differ_by_more_than_10():
    _, trainer = build_trainer(lambda net: discriminative(net, 0.5, 1))
    ax = matplotlib.pyplot.figure().add_subplot()
    assert plot_learning_rates(trainer, 3, ax=ax) is ax
    assert ax.get_yscale() == "linear"
    assert list(ax.get_lines()[0].get_xdata()) == [1, 2, 3]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("update", "learning rate")
    _, trainer = build_trainer(lambda net: discriminative(net, 0.01, 1))
    assert plot_learning_rates(trainer, 3).get_yscale() == "log"


def test_parameters_of_a_group_with_schedules_of_their_own_have_lines_of_their_own():
    net, trainer = build_trainer(lambda net: net)
    trainer.set_lr_mult({net[0]: lambda t: 1.0 if t < 3 else 2.0})
    lines = drawn(plot_learning_rates(trainer, 3))
    assert len(lines) == 2
    assert sorted(line[2] for line in lines.values()) == pytest.approx([0.1, 0.2])


def test_the_legend_names_20_of_many_groups():
    net = nn.HybridSequential(prefix="net_")
    net.add(*(nn.Dense(2, in_units=2) for _ in range(50)))
    net.initialize()
    _, trainer = build_trainer(lambda net: layerwise_decay(net, 0.9), net=net)
    ax = plot_learning_rates(trainer, 3)
    assert len(drawn(ax)) == 50
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert (len(shown), shown[0], shown[-1]) == (20, "stage1", "stage50")
    assert ax.get_legend().get_title().get_text() == "20 of 50 groups"
    assert len({matplotlib.colors.to_hex(line.get_color()) for line in ax.get_lines()}) == 50


def test_misuse_is_refused():
    net, trainer = build_trainer(lambda net: net)
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


def test_the_error_without_matplotlib_names_the_extra(monkeypatch):
    _, trainer = build_trainer(lambda net: net)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'multitrainer\[plot\]'"):
        plot_learning_rates(trainer, 3)


def axes():
    return matplotlib.figure.Figure().subplots()


def test_a_line_has_a_gap_while_its_rate_is_0():
    ax = axes()
    draw_learning_rates(ax, [4, 5, 6], [("a", [0, 0.1, 0.2]), ("b", [0.3, 0.0, 0.3])])
    lines = drawn(ax)
    np.testing.assert_array_equal(lines["a"], [np.nan, 0.1, 0.2])
    np.testing.assert_array_equal(lines["b"], [0.3, np.nan, 0.3])
    assert ax.get_xlim() == (3.5, 6.5)


@pytest.mark.parametrize(
    ("rates", "scale"),
    [
        ([[1, 1], [10, 10]], "linear"),
        ([[1, 1], [10, 10.1]], "log"),
        ([[1, 20], [10, 200]], "linear"),  # over the updates rates may differ by more
        ([[0, 0], [0.001, 1]], "linear"),
        ([[0, 0], [0, 0]], "linear"),
    ],
)
def test_the_scale_is_logarithmic_if_rates_of_one_update_differ_by_more_than_10(rates, scale):
    ax = axes()
    draw_learning_rates(ax, [1, 2], list(zip("ab", rates)))
    assert ax.get_yscale() == scale


@pytest.mark.parametrize("count", [1, 10, 11, 20, 21])
def test_lines_differ_in_colour_and_the_legend_names_20_of_them(count):
    ax = axes()
    draw_learning_rates(ax, [1, 2], [(str(i), [1, 1]) for i in range(count)])
    assert len({matplotlib.colors.to_hex(line.get_color()) for line in ax.get_lines()}) == count
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(named) == min(count, 20)
    assert (named[0], named[-1]) == ("0", str(count - 1))
    assert ax.get_legend().get_title().get_text() == ("20 of 21 groups" if count == 21 else "")
