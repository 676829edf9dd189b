"""The results of an evaluation as text, as JSON and as files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Iterator, Sequence

from ..errors import UserError
from ..output import escape
from ..runs import artifacts
from . import confusion_figure
from .measurement import ClassFigures, Measurement
from .recorded_accuracy import RecordedAccuracy

FOLDER, JSON, PICTURE = "evaluation", "evaluation.json", "confusion.png"
PLACES = ("run", "data")  # in the subject: both can be renamed
MATRIX_CLASSES = 20  # a matrix of more classes does not fit on a screen
_CONFUSIONS = 10


def choose_folder(run: Path, out: Path | None, subject: dict[str, Any]) -> Path:
    """Return the folder of the results: one that holds none yet, or those of the same subject, which are replaced.

    Parameters
    ----------
    run : Path
        The folder of the run.
    out : Path, optional
        The value of --out; by default, the next free one of RUN/evaluation, RUN/evaluation-2 and so on.
    subject : dict
        What is measured, on what. Where the run and the images are (`PLACES`) makes no difference.

    Raises
    ------
    UserError
        If `out` holds other results.
    """
    if out is not None:
        if not _is_free(out, subject):
            raise UserError(f"--out {out} holds another evaluation, or other files of its names; choose another --out")
        return out
    names = itertools.chain([FOLDER], (f"{FOLDER}-{number}" for number in itertools.count(2)))
    return next(run / name for name in names if _is_free(run / name, subject))


def _is_free(folder: Path, subject: dict[str, Any]) -> bool:
    if not any((folder / name).exists() for name in (JSON, PICTURE)):
        return True
    try:
        earlier = json.loads((folder / JSON).read_text(encoding="utf-8"))["subject"]
        return _without_places(earlier) == _without_places(subject)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _without_places(subject: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in subject.items() if key not in PLACES}


def as_json(
    subject: dict[str, Any], measured: Measurement, recorded: RecordedAccuracy | None, notes: Sequence[str]
) -> str:
    """Return everything that was measured, and what the run has recorded for the same images, if anything."""
    fields = {
        "subject": subject,
        "notes": list(notes),
        "images": measured.images,
        "accuracy": round(measured.accuracy, 6),
        "top": {"k": measured.top, "accuracy": round(measured.top_accuracy, 6)} if measured.top > 1 else None,
        "cross_entropy": round(measured.cross_entropy, 6),
        "recorded": None if recorded is None else recorded._asdict(),
        "classes": [_as_fields(figures) for figures in measured.by_class()],
        "confusion": measured.confusion.tolist(),
    }
    lines = ",\n".join(f"  {json.dumps(key)}: {_dump_rows(value)}" for key, value in fields.items())
    return f"{{\n{lines}\n}}\n"


def _as_fields(figures: ClassFigures) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in figures._asdict().items()}


def _dump_rows(value: Any) -> str:
    """Return JSON with a line for each element of a list."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, allow_nan=False)
    return "[\n" + ",\n".join(f"    {json.dumps(each, allow_nan=False)}" for each in value) + "\n  ]"


def write_files(folder: Path, text: str, measured: Measurement, title: str) -> None:
    """Write the JSON and the picture of the confusion matrix."""
    artifacts.save_figure(confusion_figure.plot_confusion(measured, title), folder / PICTURE)
    artifacts.save_text(folder / JSON, text)


def as_text(measured: Measurement) -> Iterator[str]:
    """Yield the lines of the report: the figures, the table of classes, and the confusions."""
    top = f", top-{measured.top} accuracy {measured.top_accuracy:.2%}" if measured.top > 1 else ""
    yield f"accuracy {measured.accuracy:.2%}{top}, mean cross-entropy {measured.cross_entropy:.4f}"
    yield ""
    head = ["class", "images", "right", "precision", "recall", "F1", "most often taken for"]
    yield from _align([head, *(_cells(figures) for figures in measured.by_class())], left=(0, 6))
    yield ""
    if len(measured.classes) <= MATRIX_CLASSES:
        yield "confusion matrix: images by true class (rows) and predicted class (columns)"
        numbers = [str(number) for number in range(1, len(measured.classes) + 1)]
        rows = zip(numbers, map(escape, measured.classes), measured.confusion)
        yield from _align([["", "", *numbers], *([number, name, *map(str, row)] for number, name, row in rows)], (1,))
    else:
        most = measured.confusions()[:_CONFUSIONS]
        if not most:
            yield "no image is taken for another class"
            return
        yield f"most frequent confusions: images, true class, predicted class ({JSON} has the matrix)"
        yield from _align([[str(count), escape(true), escape(other)] for true, other, count in most], (1, 2))


def _cells(figures: ClassFigures) -> list[str]:
    shares = (figures.precision, figures.recall, figures.f1)
    mistaken = f"{escape(figures.mistaken_for)} ({figures.mistakes})" if figures.mistaken_for is not None else "-"
    return [
        *(escape(figures.name), str(figures.images), str(figures.right)),
        *("-" if share is None else f"{share:.3f}" for share in shares),
        mistaken,
    ]


def _align(rows: Sequence[Sequence[str]], left: Sequence[int]) -> Iterator[str]:
    """Yield lines of columns as wide as their widest cell; those in `left` are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        yield "  ".join(cells).rstrip()
