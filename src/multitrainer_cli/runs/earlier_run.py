"""Read the run that --resume continues, and refuse it if it is damaged or was asked for something else."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from multitrainer.saved_run import parse_json

from ..errors import UserError
from . import artifacts, record, run_folder


class EarlierRun(NamedTuple):
    """What an earlier process has done of this run: its rows of metrics, and the record of its images and network."""

    rows: list[dict[str, Any]]
    images: dict[str, Any] | None = None
    network: dict[str, Any] | None = None


def read_earlier_run(
    out: Path, wanted: dict[str, Any], required_files: Callable[[list[dict[str, Any]]], list[str]]
) -> EarlierRun:
    """Read the run in a folder and check that it can be resumed. Nothing is changed.

    Parameters
    ----------
    out : Path
        The folder of the run. If no epoch of the run has ended, the result has neither rows nor images.
    wanted : dict
        The record of the run that the command line asks for.
    required_files : callable
        Takes the rows of metrics and returns the names of the files that `out` must hold by then.

    Raises
    ------
    UserError
        If the run is incomplete or damaged, or was asked for something else.
    """
    before, rows = _read(out)
    _check_same_data(out, before["images"] is not None, wanted["data"] is not None)
    _check_same_options(out, before["options"], wanted["options"])
    if before["images"] is not None:
        _check_same_weights(out, before["weights"], wanted["weights"])
    if before["data"] != wanted["data"]:
        print(f"the images of the run were in {before['data']}; they are now read from {wanted['data']}")
    _check_metrics(out, len(rows))
    if rows:
        _note_other_threads(before["threads"], wanted.get("threads"))
    if not rows:
        print(f"the run in {out} has no whole epoch yet; it begins from the start", flush=True)
        return EarlierRun([])
    # The runs of the comparison are independent of each other: it keeps no checkpoint.
    kept = [] if before["images"] is None else [*run_folder.checkpoint_files(out, len(rows))]
    names = [*(str(path.relative_to(out)) for path in kept), *required_files(rows)]
    _check_complete(out, names)
    if kept:
        _check_checksum(out, len(rows))
    else:
        _check_source(out, before["weights"])
    _check_parameters(out, [out / name for name in names if name.endswith(".params")])
    return EarlierRun(rows, before["images"], before["network"])


def check_network(out: Path, earlier: EarlierRun, network: record.NetworkRecord) -> None:
    """Raise a UserError if the record of an earlier run describes another network than the one that is to be trained.

    Parameters
    ----------
    out : Path
        The folder of the run.
    earlier : EarlierRun
        The earlier run, or one without rows.
    network : NetworkRecord
        The network that the options and the images ask for.
    """
    for field, wanted in network._asdict().items():
        found = wanted if earlier.network is None else earlier.network[field]
        # As JSON, because True == 1 == 1.0.
        if json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):
            where = f"{run_folder.RECORD}: {field} is {found!r}"
            raise resume_error(out, f"is damaged ({where}, and that of the options and images is {wanted!r})")


def _note_other_threads(before: int | None, now: int | None) -> None:
    if None not in (before, now) and before != now:
        print(
            f"the run had {before} threads, and now has {now}: from here on, its numbers may differ in their last "
            f"digits from those of a run that was not stopped; OMP_NUM_THREADS={before} keeps them"
        )


def resume_error(out: Path, reason: str) -> UserError:
    """Return the error that the run in `out` cannot be resumed."""
    return UserError(
        f"--resume: the run in {out} {reason}. Nothing was changed; put back what is missing or damaged, choose "
        "another --out, or replace the run with --overwrite"
    )


def _read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the record and the metrics of the run in a folder; it may have no metrics yet."""
    if (out / run_folder.OLD_RECORD).exists() and not (out / run_folder.RECORD).exists():
        raise UserError(
            f"--resume: the run in {out} was begun by an older multitrainer, which kept its record in "
            f"{run_folder.OLD_RECORD}; go on with that version, choose another --out, or replace the run with "
            "--overwrite"
        )
    _check_complete(out, [run_folder.RECORD])
    with _damage_reported(out):
        before = record.read(out / run_folder.RECORD)
    if not run_folder.holds_run(out):
        return before, []
    _check_complete(out, [run_folder.METRICS])
    with _damage_reported(out):
        rows = _parse_metrics(out / run_folder.METRICS)
        if before["images"] is not None:
            _check_epochs(rows)
            record.check_split(before["images"])
        return before, rows


@contextlib.contextmanager
def _damage_reported(out: Path) -> Iterator[None]:
    """Raise a UserError for any error in reading a file of the run in `out`."""
    try:
        yield
    except record.NewerFormatError as error:
        raise UserError(f"--resume: {error}; go on with that version, or choose another --out") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise resume_error(out, f"is damaged ({error})") from error


def _parse_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics; raise a ValueError or LookupError if one is no object or lacks its accuracy."""
    rows = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for place, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}, line {place}: expected an object, got {row!r}")
        if not _is_number(row["val_accuracy"]):
            raise ValueError(f"{path.name}, line {place}: val_accuracy is {row['val_accuracy']!r}, not a number")
    return rows


def _check_epochs(rows: list[dict[str, Any]]) -> None:
    """Raise a ValueError or LookupError if the rows are not those of the epochs from 1 on, as a run writes them."""
    for place, row in enumerate(rows, 1):
        where = f"{run_folder.METRICS}, line {place}"
        if type(row["epoch"]) is not int or row["epoch"] != place:
            raise ValueError(f"{where}: expected epoch {place}, got {row['epoch']!r}")
        for field in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            if not _is_number(row[field]):
                raise ValueError(f"{where}: {field} is {row[field]!r}, not a number")
        rates = row["learning_rates"]
        if not (isinstance(rates, dict) and all(map(_is_number, rates.values()))):
            raise ValueError(f"{where}: learning_rates are {rates!r}, not a number for each group")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_complete(out: Path, names: list[str]) -> None:
    missing = [name for name in names if not (out / name).exists()]
    if missing:
        raise resume_error(out, f"is incomplete: there is no {', no '.join(missing)}")


def _check_same_data(out: Path, had_images: bool, has_images: bool) -> None:
    """Refuse to resume a run on images as one on digits, and the other way round."""
    if has_images != had_images:
        kind, cure = ("a folder of images", "add --data") if had_images else ("the digits", "leave --data out")
        raise UserError(f"--resume: the run in {out} is of {kind}; {cure}, or choose another --out")


def _check_same_options(out: Path, before: dict[str, str], now: dict[str, str]) -> None:
    changed = {name for name in {**before, **now} if before.get(name, "None") != now.get(name, "None")}
    # The number of epochs is recorded with some schedules only: then it is the schedule that differs.
    if ("epochs" in before) != ("epochs" in now):
        changed.discard("epochs")
    if changed:
        options = ", ".join(_as_given(name, before.get(name)) for name in sorted(changed))
        raise UserError(f"--resume: the run in {out} had {options}; ask for the same, or choose another --out")


def _as_given(name: str, value: str | None) -> str:
    """Return an option as it was given on the command line, from the text that the record keeps of its value."""
    option = f"--{name.replace('_', '-')}"
    if value in (None, "None", "False"):
        return f"no {option}"
    return option if value == "True" else f"{option} {value}"


def _check_same_weights(out: Path, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Refuse other weights to start from. A file that is gone is not needed."""
    if before == now or (before and now and now["crc32"] in (None, before["crc32"])):
        return
    had, given = (f"--params {weights['file']}" if weights else "no --params" for weights in (before, now))
    differing = ", which holds other weights" if before and now else ""
    raise UserError(
        f"--resume: the run in {out} had {had}, and is given {given}{differing}; give the weights that it had, or "
        "choose another --out"
    )


def _check_metrics(out: Path, rows: int) -> None:
    """Refuse metrics that were emptied or cut: a checkpoint is at most one row ahead of them."""
    numbers = [int(path.stem) for path in run_folder.files_of_run(out) if path.stem.isdecimal()]
    if numbers and max(numbers) > rows + 1:
        metrics = out / run_folder.METRICS
        raise resume_error(out, f"is damaged (its checkpoint is of row {max(numbers)}, {metrics} has {rows})")


def _check_checksum(out: Path, number: int) -> None:
    """Refuse weights that are not those which the checkpoint was written with."""
    files = run_folder.checkpoint_files(out, number)
    following = run_folder.checkpoint_files(out, number + 1).checksum  # of a process killed before its row of metrics
    with _damage_reported(out):
        written = parse_json(files.checksum.read_text(encoding="utf-8"))
        if artifacts.checksum(files.weights) != written["crc32"]:
            raise ValueError(f"checksum mismatch for {files.weights.name}")
        known = list(written.get("best", []))  # which an earlier version did not write
        if known and following.exists():
            known += parse_json(following.read_text(encoding="utf-8")).get("best", [])
        if known and artifacts.checksum(out / run_folder.BEST) not in known:
            raise ValueError(f"checksum mismatch for {run_folder.BEST}")


def _check_source(out: Path, recorded: dict[str, Any] | None) -> None:
    """Refuse other weights than those that a comparison fine-tunes; an earlier version did not record them."""
    if recorded is not None and artifacts.checksum(out / run_folder.SOURCE) != recorded["crc32"]:
        raise resume_error(out, f"is damaged (checksum mismatch for {run_folder.SOURCE})")


def _check_parameters(out: Path, paths: list[Path]) -> None:
    """Refuse weights that cannot be read."""
    with _damage_reported(out):
        for path in paths:
            artifacts.check_parameters(path)
