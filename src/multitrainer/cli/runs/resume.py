"""A run in its folder: what is kept of it, and how it is found again and resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath
from typing import Any, Callable, NamedTuple

import mxnet as mx

from ... import MultiLRTrainer
from ..errors import UserError
from ..ranks.exchange import Ranks
from . import artifacts, run_folder


class Earlier(NamedTuple):
    """What a run has done before this process: its rows of metrics, and the record of its images, if it has any."""

    rows: list[dict[str, Any]]
    images: dict[str, Any] | None


class Checkpoints:
    """The weights and states of a run as they were after whole epochs, numbered by the rows of metrics until then.

    A checkpoint is written before its row of metrics and the one before it removed after that, so that whenever the
    process is killed, there is one for the last row that was measured. The record of what the run is of is written
    before it trains, so that --resume finds this run and no older one; all else is written, and an earlier run
    replaced, when the first epoch has ended.

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
    weights : Path, optional
        The file that the run starts from.
    """

    def __init__(
        self,
        out: Path,
        options: dict[str, str],
        resume: bool,
        overwrite: bool,
        ranks: Ranks,
        weights: Path | None = None,
    ) -> None:
        self.out = out
        self.metrics = artifacts.Metrics(out / run_folder.METRICS)
        self._folder = out / run_folder.CHECKPOINT
        self._options = options
        self._resume = resume
        self._overwrite = overwrite
        self._ranks = ranks
        self._weights = weights
        self._record: dict[str, Any] = {"options": options}
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
        rows, images = self._ranks.run_on_first(lambda: self._find(data, needed))
        self.metrics.rows = list(rows)
        self._begun = bool(rows)
        return Earlier(rows, images)

    def _find(self, data: Path | None, needed: Callable[[list[dict[str, Any]]], list[str]]) -> tuple[Any, Any]:
        # Now, for the file may be gone when the record is written.
        self._record.update(weights=_weights(self._weights), data=None if data is None else str(data.resolve()))
        holds_run = run_folder.holds_run(self.out)
        if not (self._resume and (holds_run or run_folder.has_record(self.out))):
            return [], None
        self._check_complete([f"{run_folder.CHECKPOINT}/{run_folder.RECORD}", *[run_folder.METRICS] * holds_run])
        try:
            record = json.loads((self._folder / run_folder.RECORD).read_text(encoding="utf-8"))
            lines = self.metrics.path.read_text(encoding="utf-8").splitlines() if holds_run else []
            rows = [json.loads(line) for line in lines]
            options, images, was_in = dict(record["options"]), record["images"], record["data"]
            weights = None if record["weights"] is None else {key: record["weights"][key] for key in ("file", "crc32")}
            if images is not None:
                images = _checked(images)
            measured = [number for number, row in enumerate(rows, 1) if row["val_accuracy"] is not None]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._cannot_resume(f"is damaged ({error})") from error
        self._check_same(options, data is not None, images is not None)
        self._check_same_weights(weights, self._record["weights"])
        if was_in != self._record["data"]:
            print(f"the images of the run were in {was_in}; they are now read from {self._record['data']}")
        self._check_metrics(len(rows))
        rows = rows[: measured[-1] if measured else 0]
        if not rows:
            print(f"the run in {self.out} has no whole epoch yet; it begins from the start", flush=True)
            return [], None
        kept = [f"{run_folder.CHECKPOINT}/{len(rows):06}{suffix}" for suffix in run_folder.KEPT]
        names = [*kept, *needed(rows)]
        self._check_complete(names)
        self._check_parameters([self.out / name for name in names if name.endswith(".params")], len(rows))
        return rows, images

    def _check_metrics(self, rows: int) -> None:
        """Refuse metrics that were emptied or cut: a checkpoint is at most one row ahead of them."""
        numbers = [int(path.stem) for path in run_folder.files_of_run(self.out) if path.stem.isdecimal()]
        if numbers and max(numbers) > rows + 1:
            raise self._cannot_resume(
                f"is damaged (its checkpoint is of row {max(numbers)}, {self.metrics.path} has {rows})"
            )

    def _check_parameters(self, paths: list[Path], number: int) -> None:
        try:
            kept = json.loads(self._path(number, "json").read_text(encoding="utf-8"))["crc32"]
            if artifacts.checksum(self._path(number, "params")) != kept:
                raise ValueError(f"{self._path(number, 'params').name} is not what was written")
            for path in paths:
                artifacts.check_parameters(path)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._cannot_resume(f"is damaged ({error})") from error

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

    def _check_same_weights(self, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
        """Refuse other weights to start from; a file that is not there any more is not needed."""
        if before == now or (before and now and now["crc32"] in (None, before["crc32"])):
            return
        was, given = (f"--params {of['file']}" if of else "no --params" for of in (before, now))
        other = ", which holds other weights" if before and now else ""
        raise UserError(
            f"--resume: the run in {self.out} had {was}, and is given {given}{other}; give the weights that it had, or "
            "choose another --out"
        )

    def _cannot_resume(self, reason: str) -> UserError:
        return UserError(
            f"--resume: the run in {self.out} {reason}. Nothing was changed; put back what is missing or damaged, "
            "choose another --out, or replace the run with --overwrite"
        )

    @property
    def spares_earlier(self) -> bool:
        """Whether the folder still holds a run that --overwrite will replace when the first epoch has ended."""
        return self._overwrite and not self._begun and run_folder.holds_run(self.out)

    def record(self, images: dict[str, Any] | None = None) -> None:
        """Before a new run trains: write what it is of, unless that would spoil a run that it is yet to replace."""
        if self.spares_earlier or not self._ranks.is_first:
            return
        if self._begun:
            return self._look_at_classes(images)
        if run_folder.holds_run(self.out) and not self._resume:
            raise UserError(f"--out {self.out}: another process has begun a run there; choose another --out")
        artifacts.make_folder(self._folder)
        artifacts.save_text(self._folder / run_folder.RECORD, json.dumps({**self._record, "images": images}))

    def begin(self, images: dict[str, Any] | None = None) -> None:
        """Before the first other file of a new run is written: replace the run that was there."""
        if self._begun or not self._ranks.is_first:
            return
        if self.spares_earlier:
            run_folder.remove_run(self.out)
        # In this order: without the record there is no run, and all else without metrics.jsonl is an incomplete one.
        self.record(images)
        artifacts.save_text(self.metrics.path, "")
        if images is not None:
            artifacts.save_text(self.out / run_folder.CLASSES, _lines(images["classes"]))
        self._begun = True

    def _look_at_classes(self, images: dict[str, Any] | None) -> None:
        """Write classes.txt again if it is gone; if it was edited, it is the user's."""
        path = self.out / run_folder.CLASSES
        if images is None:
            return
        if not os.path.lexists(path):
            artifacts.save_text(path, _lines(images["classes"]))
            print(f"{path} was gone and is written again")
        elif not path.is_file() or path.read_bytes() != _lines(images["classes"]).encode():
            print(f"{path} is not as this run wrote it; it stays as it is")

    def save(self, net: mx.gluon.Block, trainer: MultiLRTrainer, number: int) -> None:
        """Keep weights and states, before the row of metrics with this number is written."""
        artifacts.save_parameters(net, self._path(number, "params"))
        artifacts.save_states(trainer, self._path(number, "npz"))
        kept = {"crc32": artifacts.checksum(self._path(number, "params"))}
        artifacts.save_text(self._path(number, "json"), json.dumps(kept))

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
        except (OSError, ValueError, AssertionError, mx.MXNetError) as error:
            raise self._cannot_resume(f"is damaged ({error})") from error

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / f"{number:06}.{kind}"


def _lines(names: list[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _checked(images: dict[str, Any]) -> dict[str, Any]:
    """Return the record of the images, or raise what says that it is not one."""
    classes, train, val = (list(images[name]) for name in ("classes", "train", "val"))
    for name in (*train, *val):
        if PurePath(name).parent.name not in classes:
            raise ValueError(f"the image {name!r} is in none of the classes")
    contents = {name: [int(number) for number in images["contents"][name]] for name in (*train, *val)}
    return {"classes": classes, "train": train, "val": val, "contents": contents}


def _weights(file: Path | None) -> dict[str, Any] | None:
    """Return what the record says of the weights that a run starts from."""
    if file is None:
        return None
    return {"file": str(file), "crc32": artifacts.checksum(file) if file.is_file() else None}


def _as_given(name: str, value: str | None) -> str:
    """Return an option as it was given on the command line, from the text that the record keeps of its value."""
    option = f"--{name.replace('_', '-')}"
    if value in (None, "None", "False"):
        return f"no {option}"
    return option if value == "True" else f"{option} {value}"
