"""The checkpoints of a run: written after its epochs, and restored when it is resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

import mxnet as mx

from multitrainer import MultiLRTrainer, WeightAverage

from ..errors import UserError
from ..ranks.exchange import Ranks
from . import artifacts, record, run_folder
from .earlier_run import EarlierRun, read_earlier_run, resume_error


class Checkpoints:
    """The weights and states of a run after whole epochs, numbered by the rows of metrics until then.

    A checkpoint is written before its row of metrics, and the one before it is removed after that: whenever the process
    is killed, there is one for the last row that was measured. The record of the run is written before it trains, so
    that --resume finds this run and not an older one. Everything else is written when the first epoch has ended; only
    then is an earlier run replaced.

    Parameters
    ----------
    out : Path
        The folder of the run; only rank 0 needs to have it.
    options : dict of str to str
        The options of the run, which can only be resumed with the same ones.
    resume, overwrite : bool
        Whether to continue the run that is in the folder, or to replace it.
    ranks : Ranks
        Those that train together.
    weights : Path, optional
        The file that the run starts from.
    threads : int, optional
        The threads that MXNet computes with on a CPU.
    """

    def __init__(
        self,
        out: Path,
        options: dict[str, str],
        resume: bool,
        overwrite: bool,
        ranks: Ranks,
        weights: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self.out = out
        self.metrics = artifacts.MetricsFile(out / run_folder.METRICS)
        self._record: dict[str, Any] = {"options": options, "threads": threads}
        self._resume = resume
        self._overwrite = overwrite
        self._ranks = ranks
        self._weights = weights
        self._begun = False

    def find_earlier(
        self, data: Path | None, required_files: Callable[[list[dict[str, Any]]], list[str]]
    ) -> EarlierRun:
        """Read the run to resume on `data`, if there is one, as `read_earlier_run` does; on all ranks the same."""

        def find() -> EarlierRun:
            # Computed now, because the file may be gone when the record is written.
            self._record["weights"] = _describe_weights(self._weights)
            self._record["data"] = None if data is None else str(data.resolve())
            if self._resume and (run_folder.holds_run(self.out) or run_folder.has_record(self.out)):
                return read_earlier_run(self.out, self._record, required_files)
            return EarlierRun([])

        earlier = EarlierRun(*self._ranks.run_on_first(find))
        self.metrics.rows = list(earlier.rows)
        self._begun = bool(earlier.rows)
        return earlier

    def announce_resume(self) -> None:
        """Print which run is resumed, if one is."""
        if self._begun:
            print(f"continuing after {len(self.metrics.rows)} epochs of the run in {self.out}", flush=True)

    @property
    def overwrite_pending(self) -> bool:
        """Whether the folder holds a run that --overwrite replaces when the first epoch has ended."""
        return self._overwrite and not self._begun and run_folder.holds_run(self.out)

    def write_record(self, network: record.NetworkRecord, images: dict[str, Any] | None = None) -> None:
        """Write the record of a new run, before it trains, unless the folder still holds a run to be replaced.

        Parameters
        ----------
        network : NetworkRecord
            The network and its classes.
        images : dict, optional
            The images and their division, which rank 0 has.
        """
        self._record.update(network=network, images=images)
        if not self._ranks.is_first:
            return
        if self._begun:
            self._restore_classes()
        elif not self.overwrite_pending:
            self._write_record()

    def record_source(self) -> None:
        """Let the record of a new comparison identify the weights that it fine-tunes, which are in its folder now."""
        source = self.out / run_folder.SOURCE
        self._record["weights"] = {"file": source.name, "crc32": artifacts.checksum(source)}

    def begin_run(self) -> None:
        """Replace the earlier run with the new one, before the first other file of the new run is written."""
        if self._begun or not self._ranks.is_first:
            return
        if self.overwrite_pending:
            run_folder.remove_run(self.out)
        run_folder.remove_temporary_files(self.out)
        # In this order: a folder without record holds no run, and one without metrics.jsonl an incomplete one.
        self._write_record()
        artifacts.make_folder(self.out / run_folder.CHECKPOINT)
        artifacts.save_text(self.metrics.path, "")
        if self._classes is not None:
            artifacts.save_text(self.out / run_folder.CLASSES, self._classes)
        self._begun = True

    def _write_record(self) -> None:
        if run_folder.holds_run(self.out) and not self._resume:
            raise UserError(f"--out {self.out}: another process has begun a run there; choose another --out")
        record.write(self.out / run_folder.RECORD, **self._record)

    @property
    def _classes(self) -> str | None:
        """What classes.txt holds; None if the run has no folder of images."""
        images = self._record["images"]
        return None if images is None else "".join(f"{name}\n" for name in images["classes"])

    def _restore_classes(self) -> None:
        """Write classes.txt again if it is gone. If the user has edited it, leave it."""
        path = self.out / run_folder.CLASSES
        if self._classes is None:
            return
        if not os.path.lexists(path):
            artifacts.save_text(path, self._classes)
            print(f"{path} was gone and is written again")
        elif not path.is_file() or path.read_bytes() != self._classes.encode():
            print(f"{path} is not as this run wrote it; it stays as it is")

    def save(
        self,
        net: mx.gluon.Block,
        trainer: MultiLRTrainer,
        number: int,
        average: WeightAverage | None = None,
        best: int | None = None,
    ) -> None:
        """Write a checkpoint, before the row of metrics with its number is written.

        `best` is the checksum of the best weights if they are about to replace those in the folder.
        """
        files = run_folder.checkpoint_files(self.out, number)
        artifacts.save_parameters(net, files.weights)
        artifacts.save_states(trainer, files.states)
        if average is not None:
            artifacts.save_average(average, run_folder.average_file(self.out, number))
        kept = self.out / run_folder.BEST
        checksums = [each for each in (best, artifacts.checksum(kept) if kept.exists() else None) if each is not None]
        artifacts.save_text(files.checksum, json.dumps({"crc32": artifacts.checksum(files.weights), "best": checksums}))

    def remove_before(self, number: int) -> None:
        """Remove the checkpoints before the one with this number."""
        for path in (self.out / run_folder.CHECKPOINT).iterdir():
            found = run_folder.checkpoint_number(path)
            if found is not None and found < number:
                path.unlink()

    def restore(
        self,
        net: mx.gluon.Block,
        trainer: MultiLRTrainer,
        contexts: list[mx.Context],
        number: int,
        average: WeightAverage | None = None,
    ) -> None:
        """Load a checkpoint of rank 0 on all ranks, and remove what a killed process has left of others.

        Raises
        ------
        UserError
            If it is damaged; nothing is removed.
        """
        files = run_folder.checkpoint_files(self.out, number)
        try:
            with self._ranks.local_copy(files.weights) as path:
                net.load_parameters(str(path), ctx=contexts)
            with self._ranks.local_copy(files.states) as path:
                trainer.load_states(path)
            if average is not None:
                with self._ranks.local_copy(run_folder.average_file(self.out, number)) as path:
                    average.load(path)
        except (OSError, ValueError, AssertionError, mx.MXNetError) as error:
            raise resume_error(self.out, f"is damaged ({error})") from error
        if self._ranks.is_first:
            self.remove_before(number)
            run_folder.remove_temporary_files(self.out)


def _describe_weights(file: Path | None) -> dict[str, Any] | None:
    """Return the field of the record that identifies the weights a run starts from."""
    if file is None:
        return None
    return {"file": str(file), "crc32": artifacts.checksum(file) if file.is_file() else None}
