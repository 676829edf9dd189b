"""The files that a run on a folder of images writes after every epoch, and when it ends."""

from __future__ import annotations

import contextlib
from typing import Any

from mxnet import gluon

from multitrainer import MultiLRTrainer, WeightAverage

from ..runs import artifacts, figures, run_folder
from ..runs.checkpoints import Checkpoints
from ..runs.tensorboard import TensorBoardFile
from . import average as averaging


class EpochFiles:
    """Writes weights, metrics and a checkpoint after every epoch; for rank 0 alone.

    Parameters
    ----------
    net : Block
        The network, whose best and last parameters are kept.
    trainer : MultiLRTrainer
        The trainer, whose state goes into the checkpoint.
    checkpoints : Checkpoints
        The run; its metrics hold the rows of the epochs that were trained before.
    average : WeightAverage, optional
        The average whose weights are kept as the best and last ones.
    tensorboard : TensorBoardFile, optional
        A copy of the metrics.
    """

    def __init__(
        self,
        net: gluon.Block,
        trainer: MultiLRTrainer,
        checkpoints: Checkpoints,
        average: WeightAverage | None = None,
        tensorboard: TensorBoardFile | None = None,
    ) -> None:
        self.out = checkpoints.out
        self._net = net
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._average = average
        self._tensorboard = tensorboard

    def write_epoch(self, row: dict[str, Any]) -> None:
        """Write everything that an epoch changes.

        Its row of metrics comes after its checkpoint, and the checkpoint, with the checksum of the best weights, before
        these: whenever the process is killed, best.params is one that a checkpoint knows.
        """
        checkpoints, earlier = self._checkpoints, self._checkpoints.metrics.rows
        checkpoints.begin_run()
        self._save_parameters(run_folder.LAST)
        with contextlib.ExitStack() as stack:
            best = None
            if row["val_accuracy"] > max((each["val_accuracy"] for each in earlier), default=-1.0):
                with averaging.applied(self._average):
                    saving = artifacts.saving_parameters(self._net, self.out / run_folder.BEST)
                    best = stack.enter_context(saving)
            checkpoints.save(self._net, self._trainer, row["epoch"], self._average, best)
        checkpoints.metrics.add(row)
        self._copy_metrics()
        checkpoints.remove_before(row["epoch"])

    def write_interrupted(self) -> str:
        """Write the weights of an unfinished epoch, unless they would replace an earlier run; return what was done."""
        if self._checkpoints.overwrite_pending:
            return f" in the first epoch; the run in {self.out} is as it was"
        self._checkpoints.begin_run()
        self._save_parameters(run_folder.LAST)
        return f"; {self.out / run_folder.LAST} holds the weights as they are now"

    def finish(self, title: str) -> None:
        """Draw the metrics and print the best epoch, if an epoch has ended."""
        rows = self._checkpoints.metrics.rows
        if rows:
            self._copy_metrics()
            artifacts.save_figure(figures.plot_training(rows, title), self.out / "finetune.png")
            best = max(rows, key=lambda row: row["val_accuracy"])
            print(f"best validation accuracy {best['val_accuracy']:.1%} (epoch {best['epoch']}); files in {self.out}")
            print(f"next: multitrainer evaluate {self.out}, or predict {self.out} IMAGE..., or export {self.out}")

    def _save_parameters(self, name: str) -> None:
        with averaging.applied(self._average):
            artifacts.save_parameters(self._net, self.out / name)

    def _copy_metrics(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.write(self._checkpoints.metrics.rows)
