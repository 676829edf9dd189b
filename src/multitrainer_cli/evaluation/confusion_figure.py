"""The picture of a confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import require
from ..output import escape
from .measurement import Measurement

ANNOTATED_CLASSES = 20  # of more, the numbers do not fit into the cells
_LABELS = 40
_LABEL_LENGTH = 24


def plot_confusion(measured: Measurement, title: str) -> Any:
    """Plot which classes are taken for which, as shares of the images of a class.

    Parameters
    ----------
    measured : Measurement
        The counts.
    title : str
        What was measured.

    Returns
    -------
    matplotlib.figure.Figure
    """
    count = len(measured.classes)
    side = min(3 + 0.45 * count, 14)
    figure = require("matplotlib.figure").Figure(figsize=(side + 1.5, side), layout="constrained")
    axes = figure.subplots()
    images = measured.confusion.sum(axis=1, keepdims=True)
    shares = measured.confusion / np.maximum(images, 1)
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, ax=axes, label="% of the images of a class", shrink=0.8)
    places = range(0, count, -(-count // _LABELS))
    names = [_shorten(escape(measured.classes[place])) for place in places]
    axes.set_xticks(places)
    axes.set_yticks(places)
    axes.set_xticklabels(names, rotation=90, parse_math=False)  # a name may hold a $
    axes.set_yticklabels(names, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    if count <= ANNOTATED_CLASSES:
        for (row, column), number in np.ndenumerate(measured.confusion):
            if number:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(number), ha="center", va="center", color=colour, fontsize=9)
    return figure


def _shorten(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else f"{name[: _LABEL_LENGTH - 1]}…"
