"""The picture of the comparison: accuracy over the learning rate, and the differences to one learning rate."""

from __future__ import annotations

from typing import Any

from ..errors import require
from ..runs import figures
from .intervals import Interval, Results, interval
from .regimes import BASE, REGIMES

DODGE = 1.04  # between two regimes at one rate, so that their intervals do not hide each other


def plot_results(results: Results, title: str) -> Any:
    """Plot mean and interval of every regime over the learning rates, and its gain on one learning rate.

    Parameters
    ----------
    results : Results
        Two draws or more.
    title : str
        What was compared.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (left, right) = figures.panels(title, (3, 2))
    for place, (colour, name) in enumerate(zip(figures.COLOURS, REGIMES)):
        found = [interval(results.at_rate(name, rate)) for rate in results.rates]
        shift = DODGE ** (place - len(REGIMES) // 2)
        rates = [rate * shift for rate in results.rates]
        _draw(left, rates, found, color=colour, label=name, linewidth=2, marker="o")
        if name != BASE:
            for offset, tuned, marker in ((-0.12, True, "o"), (0.12, False, "D")):
                mean, half = results.gain(name, tuned)
                right.errorbar(mean, place + offset, xerr=half, color=colour, marker=marker, capsize=3, linewidth=2)
    ticker = require("matplotlib.ticker")
    left.set_xscale("log")
    left.set_xticks(results.rates)
    left.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    left.xaxis.set_minor_locator(ticker.NullLocator())
    left.set_ylim(0, 102)
    left.set_xlabel("learning rate")
    left.set_title(
        f"accuracy on unseen images, %: mean and 95 % interval, {len(results.seeds)} draws", fontsize=10, loc="left"
    )
    left.legend(frameon=False, fontsize=9, loc="lower left")
    right.axvline(0, color="0.3", linewidth=1)
    right.set_yticks(range(len(REGIMES)), list(REGIMES))
    right.set_ylim(len(REGIMES) - 0.5, -0.5)
    right.set_title(f"points above {BASE}, same draws", fontsize=10, loc="left")
    for marker, label in (("o", "with the rate tuned on the other draws"), ("D", "averaged over the rates")):
        right.plot([], [], marker, color="0.4", label=label)
    right.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.28))
    return figure


def _draw(axes: Any, places: list[float], found: list[Interval], **style: Any) -> None:
    axes.errorbar(places, [each.mean for each in found], yerr=[each.half for each in found], capsize=3, **style)
