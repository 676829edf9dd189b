"""The recorded accuracy is that of the epoch whose weights were kept."""

from __future__ import annotations

import json

import pytest

from multitrainer_cli.evaluation.recorded_accuracy import RecordedAccuracy, read_accuracy


@pytest.fixture
def run(tmp_path):
    rows = [{"epoch": n, "val_accuracy": accuracy} for n, accuracy in enumerate([0.5, 0.75, 0.75, 0.25], 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_best_is_the_first_of_equals(run):
    assert read_accuracy(run, "best") == RecordedAccuracy(2, 0.75)
    assert read_accuracy(run, "last") == RecordedAccuracy(4, 0.25)


@pytest.mark.parametrize("content", ["", "{", "{}\n", '{"epoch": 1, "val_accuracy": null}\n', "[]\n"])
def test_damaged_metrics_record_nothing(run, content):
    (run / "metrics.jsonl").write_text(content)
    assert read_accuracy(run, "best") is None
    assert read_accuracy(run, "last") is None


def test_metrics_that_are_gone_record_nothing(tmp_path):
    assert read_accuracy(tmp_path, "best") is None


def test_an_accuracy_is_compared_as_it_was_recorded():
    recorded = RecordedAccuracy(3, 0.666667)
    assert recorded.compare(2 / 3, "best") == "this is the accuracy that the run has recorded in epoch 3"
    other = recorded.compare(0.666668, "last")
    assert other.startswith("warning: the run has recorded another accuracy in epoch 3, 66.6667%, not 66.6668%")
    assert "unfinished epoch" in other
    assert "unfinished epoch" not in recorded.compare(0.5, "best")


@pytest.mark.parametrize("weights", ["best", "last"])
def test_weights_of_an_epoch_that_was_not_recorded_are_a_reason(weights):
    other = RecordedAccuracy(3, 0.5).compare(0.75, weights)
    assert f"if it was killed after it wrote {weights}.params and before it recorded that epoch" in other
    assert "not resumed since" in other
