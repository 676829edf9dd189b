"""A run in its folder: what is kept of it, and how it is found again and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, NamedTuple

import mxnet as mx

from .. import MultiLRTrainer
from . import artifacts, runfolder
from .errors import UserError
from .ranks import Ranks


class Earlier(NamedTuple):
    """What a run has done before this process: its rows of metrics, and the record of its images, if it has any."""

    rows: list[dict[str, Any]]
    images: dict[str, list[str]] | None


class Checkpoints:
    """The weights and states of a run as they were after whole epochs, numbered by the rows of metrics until then.

    A checkpoint is written before its row of metrics and the one before it removed after that, so that whenever the
    process is killed, there is one for the last row that was measured. Nothing is written, and no earlier run replaced,
    before the first epoch has ended.

    Parameters
    ----------
    out : Path
        The folder of the run; only rank 0 has to have it.
    options : dict of str to str
        What the run was asked for; a run can be resumed with the same options only.
    resume, overwrite : bool
        Whether to go on with the run that is in the folder, or to replace it.
    ranks : Ranks
        Those that train together.
    """

    def __init__(self, out: Path, options: dict[str, str], resume: bool, overwrite: bool, ranks: Ranks) -> None:
        self.out = out
        self.metrics = artifacts.Metrics(out / runfolder.METRICS)
        self._folder = out / runfolder.CHECKPOINT
        self._options = options
        self._resume = resume
        self._overwrite = overwrite
        self._ranks = ranks
        self._begun = False

    def find(self, data: Path | None, needed: Callable[[list[dict[str, Any]]], list[str]]) -> Earlier:
        """Read what there is of the run to resume; on all ranks the same.

        Parameters
        ----------
        data : Path, optional
            The folder of images.
        needed : callable
            Returns, given the rows of metrics, the files that --out must hold by then.

        Raises
        ------
        UserError
            If the run is incomplete or damaged, or was asked for something else. Nothing has been changed.
        """
        rows, images = self._ranks.decide(lambda: self._find(data is not None, needed))
        self.metrics.rows = list(rows)
        self._begun = bool(rows)
        return Earlier(rows, images)

    def _find(self, has_data: bool, needed: Callable[[list[dict[str, Any]]], list[str]]) -> tuple[Any, Any]:
        if not (self._resume and runfolder.holds_run(self.out)):
            return [], None
        self._check_complete([f"{runfolder.CHECKPOINT}/{runfolder.RECORD}", runfolder.METRICS])
        try:
            record = json.loads((self._folder / runfolder.RECORD).read_text(encoding="utf-8"))
            rows = [json.loads(line) for line in self.metrics.path.read_text(encoding="utf-8").splitlines()]
            options, images = dict(record["options"]), record["images"]
            if images is not None:
                images = {name: list(images[name]) for name in ("classes", "train", "val")}
            measured = [number for number, row in enumerate(rows, 1) if row["val_accuracy"] is not None]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._cannot_resume(f"is damaged ({error})") from error
        self._check_same(options, has_data, images is not None)
        rows = rows[: measured[-1] if measured else 0]
        if not rows:
            print(f"the run in {self.out} has no whole epoch yet; it begins from the start", flush=True)
            return [], None
        kept = [f"{runfolder.CHECKPOINT}/{self._path(len(rows), kind).name}" for kind in ("params", "npz")]
        self._check_complete([*kept, *needed(rows)])
        return rows, images

    def _check_complete(self, names: list[str]) -> None:
        missing = [name for name in names if not (self.out / name).exists()]
        if missing:
            raise self._cannot_resume(f"is incomplete: there is no {', no '.join(missing)}")

    def _check_same(self, options: dict[str, str], has_data: bool, had_data: bool) -> None:
        if has_data != had_data:
            kind, cure = ("a folder of images", "add --data") if had_data else ("the digits", "leave --data out")
            raise UserError(f"--resume: the run in {self.out} is of {kind}; {cure}, or choose another --out")
        other = [name for name in {**options, **self._options} if options.get(name) != self._options.get(name)]
        if other:
            was = ", ".join(_as_given(name, options.get(name)) for name in other)
            raise UserError(f"--resume: the run in {self.out} had {was}; ask for the same, or choose another --out")

    def _cannot_resume(self, reason: str) -> UserError:
        return UserError(
            f"--resume: the run in {self.out} {reason}. Nothing was changed; put back what is missing or damaged, "
            "choose another --out, or replace the run with --overwrite"
        )

    @property
    def spares_earlier(self) -> bool:
        """Whether the folder still holds a run that --overwrite will replace when the first epoch has ended."""
        return self._overwrite and not self._begun and runfolder.holds_run(self.out)

    def begin(self, images: dict[str, list[str]] | None = None) -> None:
        """Before the first file of a new run is written: replace the one that was there, and write what it is of."""
        if self._begun or not self._ranks.first:
            return
        if self._overwrite:
            runfolder.remove_run(self.out)
        elif runfolder.holds_run(self.out) and not self._resume:
            raise UserError(f"--out {self.out}: another process has begun a run there; choose another --out")
        artifacts.make_folder(self._folder)
        # In this order: without the record there is no run, and all else without metrics.jsonl is an incomplete one.
        record = {"options": self._options, "images": images}
        artifacts.save_text(self._folder / runfolder.RECORD, json.dumps(record))
        artifacts.save_text(self.metrics.path, "")
        if images is not None:
            artifacts.save_text(self.out / runfolder.CLASSES, "".join(f"{name}\n" for name in images["classes"]))
        self._begun = True

    def save(self, net: mx.gluon.Block, trainer: MultiLRTrainer, number: int) -> None:
        """Keep weights and states, before the row of metrics with this number is written."""
        artifacts.save_parameters(net, self._path(number, "params"))
        trainer.save_states(self._path(number, "npz"))

    def remove_before(self, number: int) -> None:
        """Remove what the row with this number has made useless."""
        for path in self._folder.iterdir():
            if path.stem.isdecimal() and int(path.stem) < number:
                path.unlink()

    def announce(self) -> None:
        """Say that an earlier run is resumed, if one is."""
        if self._begun:
            print(f"going on after {len(self.metrics.rows)} epochs of the run in {self.out}", flush=True)

    def restore(self, net: mx.gluon.Block, trainer: MultiLRTrainer, contexts: list[mx.Context], number: int) -> None:
        """Give all ranks the weights and states that rank 0 kept."""
        try:
            with self._ranks.local_copy(self._path(number, "params")) as path:
                net.load_parameters(str(path), ctx=contexts)
            with self._ranks.local_copy(self._path(number, "npz")) as path:
                trainer.load_states(path)
        except (ValueError, AssertionError, mx.MXNetError) as error:
            raise self._cannot_resume(f"is damaged ({error})") from error

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / f"{number:06}.{kind}"


def _as_given(name: str, value: str | None) -> str:
    """Return an option as it was given on the command line, from the text that the record keeps of its value."""
    option = f"--{name.replace('_', '-')}"
    if value in (None, "None", "False"):
        return f"no {option}"
    return option if value == "True" else f"{option} {value}"
