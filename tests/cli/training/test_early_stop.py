from __future__ import annotations

import doctest

import pytest

from multitrainer_cli.training import early_stop
from multitrainer_cli.training.early_stop import explain_stop


def rows(*accuracies):
    return [{"epoch": epoch, "val_accuracy": value} for epoch, value in enumerate(accuracies, 1)]


@pytest.mark.parametrize(
    ("accuracies", "patience", "stops"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),  # as good as the best is no improvement
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4, 0.6, 0.5, 0.55], 2, True),
        ([0.5, 0.4, 0.6, 0.5], 2, False),
        ([0.0, 0.0, 0.0], 2, True),
        ([0.5, 0.4, 0.3], None, False),
    ],
)
def test_a_run_ends_if_its_best_epoch_is_that_long_ago(accuracies, patience, stops):
    assert bool(explain_stop(rows(*accuracies), patience)) == stops


def test_the_message_names_the_epochs_and_the_way_on():
    assert explain_stop(rows(0.5, 0.7, 0.6), 1) == (
        "stopped after epoch 3: the validation accuracy has not risen since epoch 2. To train on, --resume with a "
        "larger --early-stop than 1, or without it"
    )


def test_the_examples_run():
    assert doctest.testmod(early_stop).failed == 0
