"""The recorded accuracy is that of the epoch whose weights were kept."""

from __future__ import annotations

import json
import zlib

import pytest

from multitrainer_cli.evaluation.recorded_accuracy import RecordedAccuracy, describe_interruption, read_accuracy
from multitrainer_cli.runs import run_folder


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
    assert recorded.compare(2 / 3) == "this is the accuracy that the run has recorded in epoch 3"
    other = recorded.compare(0.666668)
    assert other.startswith("warning: the run has recorded another accuracy in epoch 3, 66.6667%, not 66.6668%")
    assert "if it was killed after it wrote the weights and before it recorded that epoch, and not resumed" in other


def test_last_weights_are_those_of_an_unfinished_epoch_unless_the_checkpoint_holds_the_same(run):
    assert describe_interruption(run, "best") == ()
    (run / "last.params").write_bytes(b"last")
    (remark,) = describe_interruption(run, "last")
    assert remark == "if the run was interrupted, last.params may hold the weights of an unfinished epoch"
    (run / "checkpoint").mkdir()
    checksum = run_folder.checkpoint_files(run, read_accuracy(run, "last").epoch).checksum
    for content in ("", "[]", '{"crc32": 1}'):
        checksum.write_text(content)
        assert describe_interruption(run, "last") == (remark,)
    checksum.write_text(json.dumps({"crc32": zlib.crc32(b"last")}))
    assert describe_interruption(run, "last") == ()
    (run / "metrics.jsonl").unlink()
    assert describe_interruption(run, "last") == (remark,)
