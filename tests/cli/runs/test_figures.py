from __future__ import annotations

import math

import pytest

pytest.importorskip("matplotlib")

from multitrainer_cli.runs import figures


def training_rows(rates):
    return [
        {
            **{"epoch": epoch, "train_accuracy": 0.2 * epoch, "val_accuracy": accuracy, "learning_rates": now},
            **{"train_loss": 1 / epoch, "val_loss": loss},
        }
        for epoch, (accuracy, loss, now) in enumerate(zip((0.25, 0.75, 0.5), (0.9, 0.7, 0.6), rates), 1)
    ]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_training_shows_accuracies_and_rings_the_best_epoch():
    left, _, _ = figures.plot_training(training_rows([{"net": 0.1}] * 3), "title").axes
    train, validation, ring = left.get_lines()
    assert train.get_ydata() == pytest.approx([20, 40, 60])
    assert validation.get_ydata() == pytest.approx([25, 75, 50])
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [75])
    assert legend(left) == ["training", "validation, best 75.0% in epoch 2"]


def test_a_training_shows_both_losses():
    _, middle, _ = figures.plot_training(training_rows([{"net": 0.1}] * 3), "title").axes
    train, validation = middle.get_lines()
    assert train.get_ydata() == pytest.approx([1, 1 / 2, 1 / 3])
    assert validation.get_ydata() == pytest.approx([0.9, 0.7, 0.6])
    assert legend(middle) == ["training, what is minimized", "validation, lowest 0.6 in epoch 3"]
    assert middle.get_ylim()[0] == 0
    assert middle.get_yscale() == "linear"


def test_a_loss_far_above_the_others_makes_the_axis_logarithmic():
    rows = training_rows([{"net": 0.1}] * 3)
    rows[0]["val_loss"] = 7.5e4
    assert figures.plot_training(rows, "title").axes[1].get_yscale() == "log"


def test_a_training_shows_a_line_for_the_learning_rate_of_each_group():
    rates = [{"body": 0, "head": 0.1, "stem": 0}, {"body": 0, "head": 0.05}, {"body": 0.01, "head": 0.05}]
    _, _, right = figures.plot_training(training_rows(rates), "title").axes
    body, head, stem = right.get_lines()
    assert [math.isnan(value) for value in body.get_ydata()] == [True, True, False]
    assert list(head.get_ydata()) == [0.1, 0.05, 0.05]
    assert all(math.isnan(value) for value in stem.get_ydata())
    assert legend(right) == ["body: 0 to 0.01", "head: 0.05 to 0.1", "stem: frozen"]
    assert [line.get_color() for line in (body, head, stem)] == [*figures.COLOURS[:2], "0.6"]
    assert [line.get_linestyle() for line in (body, head, stem)] == ["-", "--", "-."]
    assert right.get_xlim() == right.figure.axes[0].get_xlim()
    assert right.get_yscale() == "log"
    assert right.get_ylim() == pytest.approx((0.01 / 3, 0.3))


def test_a_network_that_is_frozen_needs_no_logarithmic_axis():
    _, _, right = figures.plot_training(training_rows([{"net": 0}] * 3), "title").axes
    assert right.get_yscale() == "linear"


@pytest.mark.parametrize(("groups", "listed"), [(5, 5), (6, 6), (20, 20), (21, 20), (45, 20)])
def test_the_legend_names_at_most_twenty_groups_and_says_so(groups, listed):
    rates = [{f"group{number}": 0.1 for number in range(groups)}] * 3
    _, _, right = figures.plot_training(training_rows(rates), "title").axes
    assert len(right.get_lines()) == groups
    assert len(legend(right)) == listed
    assert right.get_legend().get_title().get_text() == (f"{listed} of {groups} groups" if listed < groups else "")
    inside = right.get_legend().get_bbox_to_anchor().x0 < right.bbox.x1
    assert inside == (groups <= 5)
