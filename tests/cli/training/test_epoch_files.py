from __future__ import annotations

import json

import mxnet as mx
import pytest

pytest.importorskip("matplotlib")

from multitrainer import MultiLRTrainer
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.runs.checkpoints import Checkpoints
from multitrainer_cli.training.epoch_files import EpochFiles
from run_support import IMAGES, NETWORK


def row(epoch, accuracy):
    losses = {"train_loss": 0.7, "val_loss": 0.8}
    return {"epoch": epoch, **losses, "train_accuracy": 0.5, "val_accuracy": accuracy, "learning_rates": {"net": 0.1}}


class Run:
    """A network whose weight is the number of its epoch, and the files of its run."""

    def __init__(self, out, overwrite=False):
        self.out = out
        self.net = mx.gluon.nn.Dense(1, in_units=1, use_bias=False)
        self.net.initialize()
        self.checkpoints = Checkpoints(out, {"seed": "0"}, False, overwrite, Ranks())
        self.checkpoints.find_earlier(None, lambda rows: [])
        self.checkpoints.write_record(NETWORK, IMAGES)
        self.files = EpochFiles(self.net, MultiLRTrainer(self.net, "sgd"), self.checkpoints)

    def train(self, *accuracies):
        for epoch, accuracy in enumerate(accuracies, len(self.checkpoints.metrics.rows) + 1):
            self.net.weight.set_data(mx.nd.array([[epoch]]))
            self.files.write_epoch(row(epoch, accuracy))
        return self

    def weight(self, name):
        (array,) = mx.nd.load(str(self.out / name)).values()
        return float(array.asscalar())


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.5,), 1), ((0.1, 0.9, 0.4), 2), ((0.5, 0.5), 1), ((0.0, 0.0), 1), ((0.2, 0.3), 2)]
)
def test_last_params_are_of_the_last_epoch_and_best_params_of_the_first_best(tmp_path, accuracies, best):
    run = Run(tmp_path).train(*accuracies)
    assert run.weight("last.params") == len(accuracies)
    assert run.weight("best.params") == best
    run.files.finish("a title")
    assert (tmp_path / "finetune.png").read_bytes().startswith(b"\x89PNG")


def test_an_epoch_leaves_its_checkpoint_its_row_and_the_classes(tmp_path):
    Run(tmp_path).train(0.5, 0.25)
    checkpoint = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert checkpoint == ["000002.json", "000002.npz", "000002.params"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [row(1, 0.5), row(2, 0.25)]
    assert (tmp_path / "classes.txt").read_text() == "a\nb\n"


def test_the_best_epoch_is_printed_at_the_end(tmp_path, capsys):
    Run(tmp_path).train(0.5, 0.75, 0.25).files.finish("a title")
    best, following = capsys.readouterr().out.splitlines()
    assert best == f"best validation accuracy 75.0% (epoch 2); files in {tmp_path}"
    assert following == f"next: multitrainer evaluate {tmp_path}, or predict {tmp_path} IMAGE..., or export {tmp_path}"


def test_a_run_without_a_whole_epoch_draws_nothing(tmp_path, capsys):
    Run(tmp_path).files.finish("a title")
    assert (capsys.readouterr().out, list(tmp_path.iterdir())) == ("", [tmp_path / "run.json"])


def test_an_interrupted_epoch_leaves_the_weights_as_they_are(tmp_path):
    run = Run(tmp_path).train(0.5)
    run.net.weight.set_data(mx.nd.array([[1.5]]))
    assert run.files.write_interrupted() == f"; {tmp_path / 'last.params'} holds the weights as they are now"
    assert (run.weight("last.params"), run.weight("best.params")) == (1.5, 1)


def test_an_interrupted_first_epoch_begins_the_run(tmp_path):
    run = Run(tmp_path)
    run.net.weight.set_data(mx.nd.array([[0.5]]))
    run.files.write_interrupted()
    assert run.weight("last.params") == 0.5
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_an_interrupted_first_epoch_leaves_a_run_that_was_to_be_overwritten(tmp_path):
    Run(tmp_path).train(0.5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run = Run(tmp_path, overwrite=True)
    assert run.files.write_interrupted() == f" in the first epoch; the run in {tmp_path} is as it was"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run.train(0.1)
    assert run.weight("best.params") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
