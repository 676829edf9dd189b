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
    figure, (left, middle, right) = _panels(title, (1, 1, 1))
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


def plot_comparison(rows: Sequence[dict[str, Any]], regimes: Sequence[str], title: str) -> Any:
    """Plot each regime's accuracy over the epochs beside its learning rates and its accuracy at the end.

    Parameters
    ----------
    rows : sequence of dict
        Metrics with the fields ``regime`` and ``seed``.
    regimes : sequence of str
        The names of the regimes, in the order to draw them.
    title : str
        What was compared.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (left, middle, right) = _panels(title, (4, 3, 3))
    for place, (colour, regime) in enumerate(zip(COLOURS, regimes)):
        curves = _accuracy_by_seed(rows, regime)
        if curves:
            final = _plot_mean_and_range(left, curves, colour, regime)
            right.barh(place, sum(final) / len(final), color=colour, height=0.6)
            right.plot(final, [place] * len(final), "o", color="white", markeredgecolor="black", markersize=4.5)
            right.text(2, place, f"{sum(final) / len(final):.1f} %", va="center", color="white", fontweight="bold")
    _format_accuracy(left, "accuracy on unseen images, %: mean and range")
    measured = sorted({row["epoch"] for row in rows})
    left.set_xticks(measured[:: len(measured) // 12 + 1])
    _plot_rates_of_regimes(middle, {row["regime"]: row["learning_rates"] for row in rows}, regimes)
    right.set_xlim(0, 100)
    right.set_title("accuracy at the end, %: mean, and each draw", fontsize=10, loc="left")
    for axes in (middle, right):
        axes.set_yticks(range(len(regimes)))
        axes.set_ylim(len(regimes) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    middle.set_yticklabels(regimes)
    right.set_yticklabels([])
    return figure


def _accuracy_by_seed(rows: Sequence[dict[str, Any]], regime: str) -> list[dict[int, float]]:
    """Return, for each seed of a regime, a dict of epoch to accuracy."""
    curves: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["regime"] == regime:
            curves.setdefault(row["seed"], {})[row["epoch"]] = row["val_accuracy"]
    return list(curves.values())


def _plot_mean_and_range(axes: Any, curves: list[dict[int, float]], colour: str, label: str) -> list[float]:
    """Plot mean and range of several curves over the epochs; return the last value of each, in per cent."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [[100 * curve[epoch] for curve in curves] for epoch in epochs]
    axes.plot(epochs, [sum(each) / len(each) for each in values], color=colour, linewidth=2, label=label)
    axes.fill_between(epochs, [min(e) for e in values], [max(e) for e in values], color=colour, alpha=0.12, lw=0)
    return values[-1]


def _plot_rates_of_regimes(axes: Any, rates: dict[str, dict[str, float]], regimes: Sequence[str]) -> None:
    """Plot a mark for the learning rate of each group, in the colour of its regime, and a text if it is frozen."""
    names = list(dict.fromkeys(name for groups in rates.values() for name in groups))
    trained = [rate for groups in rates.values() for rate in groups.values() if rate]
    if trained:
        axes.set_xscale("log")
        axes.set_xlim(min(trained) / 5, max(trained) * 3)
    for marker, name in zip("osD^v", names):
        fill, size = ("none", 14) if marker == "o" else ("full", 5)  # a ring shows the mark of another group inside it
        axes.plot([], [], marker, color="0.4", fillstyle=fill, label=name)
        for place, (colour, regime) in enumerate(zip(COLOURS, regimes)):
            rate = rates.get(regime, {}).get(name)
            if rate:
                axes.plot([rate], [place], marker, fillstyle=fill, color=colour, markersize=size, markeredgewidth=2)
            elif rate == 0:
                text = {"va": "center", "color": colour, "transform": axes.get_yaxis_transform()}
                axes.text(0.03, place, f"{name} frozen", **text)
    axes.xaxis.set_major_formatter(require("matplotlib.ticker").FormatStrFormatter("%g"))
    axes.set_title("learning rate of each group", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


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


def _panels(title: str, widths: Sequence[int]) -> Any:
    figure = require("matplotlib.figure").Figure(figsize=(4 + 3.5 * len(widths), 4.2), layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
    for axes in panels:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def _format_accuracy(axes: Any, label: str) -> None:
    axes.set_ylim(0, 102)
    axes.set_xlabel("epoch")
    axes.set_title(label, fontsize=10, loc="left")
    _show_whole_epochs(axes)
    axes.legend(frameon=False, loc="lower right", fontsize=9)


def _show_whole_epochs(axes: Any) -> None:
    axes.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True, min_n_ticks=1))
