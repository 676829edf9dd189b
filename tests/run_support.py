"""A run of one weight, written as the command writes its files, and a stand-in for SIGKILL at any moment."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

import mxnet as mx

from cli_support import rows_of
from multitrainer import MultiLRTrainer
from multitrainer_cli.arguments.defaults import RUN_FOLDER
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.runs import artifacts
from multitrainer_cli.runs.checkpoints import Checkpoints
from multitrainer_cli.runs.claim import claim_folder
from multitrainer_cli.runs.record import NetworkRecord

IMAGES = {"classes": ["a", "b"], "train": ["a/1.jpg", "b/1.jpg"], "val": ["a/2.jpg", "b/2.jpg"]}
IMAGES["contents"] = {name: [1, 2] for name in (*IMAGES["train"], *IMAGES["val"])}
NETWORK = NetworkRecord("one weight", IMAGES["classes"], {"size": 1, "resize": 1, "mean": [0] * 3, "std": [1] * 3})
CHANGES = ("os.rename", "os.remove", "os.mkdir")  # audit events; os.replace raises os.rename


class Killed(BaseException):
    """Stands for SIGKILL."""


class Killer:
    """Raises `Killed` in place of one change to a file, counted from the start of the block under `at`."""

    def __init__(self):
        self._left = None
        sys.addaudithook(self._look)

    def _look(self, event, _):
        if self._left is not None and event in CHANGES:
            self._left -= 1
            if self._left < 0:
                self._left = None
                raise Killed

    @contextlib.contextmanager
    def at(self, moment):
        self._left = moment
        try:
            yield
        finally:
            self._left = None

    def moments(self, folder, work):
        """Yield, for each moment at which `work` can be killed, a folder as the killed work leaves it."""
        for moment in itertools.count():
            out = folder / str(moment)
            out.mkdir()
            try:
                work(out, self.at(moment))
            except Killed:
                yield out
            else:
                assert moment > 20
                return


def required_files(rows):
    return ["best.params", "last.params"]


def row_of(epoch, accuracy):
    """Return a row of metrics with the fields that a resumed run needs."""
    measured = dict.fromkeys(("train_loss", "train_accuracy", "val_loss"), 0.5)
    return {"epoch": epoch, **measured, "val_accuracy": accuracy, "learning_rates": {"net": 0.1}}


def train(folder, epochs, value, resume=False, overwrite=False):
    """Write the files of a run as the command does; its one weight and its metric are `value` plus the epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    net = mx.gluon.nn.Dense(1, in_units=1, use_bias=False, prefix="net_")
    net.initialize()
    trainer = MultiLRTrainer(net, "sgd")
    checkpoints = Checkpoints(folder, {"value": str(value)}, resume, overwrite, Ranks())
    before = checkpoints.find_earlier(Path("data"), required_files)
    checkpoints.write_record(NETWORK, IMAGES)
    assert before.images == (IMAGES if before.rows else None)
    if before.rows:
        checkpoints.restore(net, trainer, [mx.cpu()], len(before.rows))
        assert net.weight.data().asscalar() == value + len(before.rows)
    for epoch in range(len(before.rows) + 1, epochs + 1):
        net.weight.set_data(mx.nd.full((1, 1), value + epoch))
        checkpoints.begin_run()
        artifacts.save_parameters(net, folder / "last.params")
        with artifacts.saving_parameters(net, folder / "best.params") as best:
            checkpoints.save(net, trainer, epoch, best=best)
        checkpoints.metrics.add(row_of(epoch, value + epoch))
        checkpoints.remove_before(epoch)


def check_run(folder, epochs, value):
    """Check that a folder holds the run that `train` writes with these arguments."""
    assert [row["val_accuracy"] for row in rows_of(folder)] == [value + epoch for epoch in range(1, epochs + 1)]
    for name in (*required_files([]), f"checkpoint/{epochs:06}.params"):
        assert mx.nd.load(str(folder / name))["weight"].asscalar() == value + epochs


def claim(out=None, resume=False, overwrite=False):
    return claim_folder(out, RUN_FOLDER, resume, overwrite, Ranks())
