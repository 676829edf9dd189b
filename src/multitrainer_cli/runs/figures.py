"""The figures of a run, drawn with matplotlib: accuracy and learning rates over the epochs."""

from __future__ import annotations

import statistics
from typing import Any, Sequence

from multitrainer.plotting import draw_learning_rates

from ..errors import require

# Distinguishable with any colour vision (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
LOGARITHMIC_ABOVE = 10  # medians, from which on the largest loss hides the others
LEGEND_INSIDE = 5  # groups that a legend has room for among the lines


def plot_training(rows: Sequence[dict[str, Any]], title: str) -> Any:
    """Plot accuracy over the epochs, beside the loss and the learning rate of each group.

    Parameters
    ----------
    rows : sequence of dict
        The metrics of a run, one row per epoch.
    title : str
        What was trained.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (left, middle, right) = panels(title, (1, 1, 1))
    epochs = [row["epoch"] for row in rows]
    best = max(rows, key=lambda row: row["val_accuracy"])
    labels = ("training", f"validation, best {best['val_accuracy']:.1%} in epoch {best['epoch']}")
    for colour, key, label in zip(COLOURS, ("train_accuracy", "val_accuracy"), labels):
        left.plot(epochs, [100 * row[key] for row in rows], color=colour, marker="o", markersize=3.5, label=label)
    ring = {"marker": "o", "markersize": 10, "fillstyle": "none", "color": COLOURS[1], "clip_on": False}
    left.plot([best["epoch"]], [100 * best["val_accuracy"]], **ring)
    _format_accuracy(left, "accuracy, %")
    _plot_losses(middle, rows)
    _plot_rates(right, epochs, [row["learning_rates"] for row in rows])
    return figure


def _plot_losses(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Plot what the training minimized and the cross-entropy of the validation images.

    The axis is logarithmic if a few epochs, mostly the first, would flatten all others.
    """
    best = min(rows, key=lambda row: row["val_loss"])
    labels = ("training, what is minimized", f"validation, lowest {best['val_loss']:.4g} in epoch {best['epoch']}")
    curves = [[row[key] for row in rows] for key in ("train_loss", "val_loss")]
    for colour, label, values in zip(COLOURS, labels, curves):
        axes.plot([row["epoch"] for row in rows], values, color=colour, marker="o", markersize=3.5, label=label)
    every = [value for values in curves for value in values]
    if max(every) > LOGARITHMIC_ABOVE * statistics.median(every):
        _make_logarithmic(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_title("loss (cross-entropy)", fontsize=10, loc="left")
    _show_whole_epochs(axes)
    axes.legend(frameon=False, loc="best", fontsize=9)


def _plot_rates(axes: Any, epochs: list[int], rates: list[dict[str, float]]) -> None:
    """Plot the learning rate of each group; a logarithmic axis cannot show 0, so the legend says what is frozen."""
    names = list(dict.fromkeys(name for rate in rates for name in rate))
    values = {name: [rate.get(name, 0.0) for rate in rates] for name in names}
    styles = [
        {
            "color": COLOURS[place % len(COLOURS)] if any(values[name]) else "0.6",  # grey: frozen
            "linestyle": STYLES[place % len(STYLES)],
            "linewidth": 2,
        }
        for place, name in enumerate(names)
    ]
    draw_learning_rates(axes, epochs, [(f"{name}: {_span(values[name])}", values[name]) for name in names], styles)
    axes.autoscale(axis="x")
    axes.get_legend().set_frame_on(False)
    positive = [value for rate in rates for value in rate.values() if value]
    if positive:
        _make_logarithmic(axes)
        axes.set_ylim(min(positive) / 3, max(positive) * 3)
    axes.set_xlabel("epoch")
    axes.set_title("learning rate of each group", fontsize=10, loc="left")
    _show_whole_epochs(axes)
    if len(names) <= LEGEND_INSIDE:
        axes.legend(frameon=False, fontsize=9, loc="best")


def _make_logarithmic(axes: Any) -> None:
    ticker = require("matplotlib.ticker")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _span(values: list[float]) -> str:
    """Return the range of ``values`` as text, or 'frozen' if all are 0."""
    low, high = min(values), max(values)
    return "frozen" if high == 0 else f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"


def panels(title: str, widths: Sequence[int]) -> Any:
    """Return a figure and its panels side by side."""
    figure = require("matplotlib.figure").Figure(figsize=(4 + 3.5 * len(widths), 4.2), layout="constrained")
    axes_of_panels = figure.subplots(1, len(widths), width_ratios=widths)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold", parse_math=False)
    for axes in axes_of_panels:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, axes_of_panels


def _format_accuracy(axes: Any, label: str) -> None:
    axes.set_ylim(0, 102)
    axes.set_xlabel("epoch")
    axes.set_title(label, fontsize=10, loc="left")
    _show_whole_epochs(axes)
    axes.legend(frameon=False, loc="lower right", fontsize=9)


def _show_whole_epochs(axes: Any) -> None:
    axes.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True, min_n_ticks=1))
