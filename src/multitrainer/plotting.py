"""Plot the learning rates of the updates to come."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

_LEGEND = 20  # entries that a legend can hold beside the axes


_WIDE = 10  # groups whose rates are further apart than this factor are drawn on a logarithmic axis


def plot_learning_rates(trainer: Any, num_updates: int, ax: Any = None) -> Any:
    """Draw the learning rate of each group over the updates to come, without training.

    Parameters
    ----------
    trainer : MultiLRTrainer
        It is not changed: copies of its lr_scheduler and of its schedules are asked. A plain function cannot be
        copied; one that keeps count of its calls counts these too.
    num_updates : int
        How many updates to draw, from the trainer's next one on.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure of matplotlib.pyplot.

    Returns
    -------
    matplotlib.axes.Axes
        One line a group, labelled with its name. Where a group is frozen its line has a gap. The axis is
        logarithmic if the rates of one update differ by more than a factor of 10. Of more than 20 groups the legend
        names 20.

    Raises
    ------
    TypeError, ValueError
        If ``trainer`` is no `MultiLRTrainer`, ``num_updates`` is no whole number above 0, or a schedule cannot be
        copied.
    ImportError
        Without matplotlib, with the extra to install.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer, gradual_unfreezing, plot_learning_rates
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1()
    >>> net.initialize()
    >>> trainer = MultiLRTrainer([net, *gradual_unfreezing(net, every=100)], 'sgd', {'learning_rate': 0.1})
    >>> len(plot_learning_rates(trainer, 600).get_lines())
    6
    """
    planned = getattr(trainer, "_planned", None)
    if planned is None:
        raise TypeError(f"trainer must be a MultiLRTrainer, got {type(trainer).__name__}")
    if not isinstance(num_updates, numbers.Integral) or isinstance(num_updates, bool) or num_updates < 1:
        raise ValueError(f"num_updates must be a whole number above 0, got {num_updates!r}")
    updates, lines = planned(int(num_updates))
    try:
        from matplotlib import colormaps, pyplot
    except ImportError as error:
        raise ImportError("plot_learning_rates needs matplotlib: pip install 'multitrainer[plot]'") from error
    ax = pyplot.subplots(figsize=(9, 4.5), layout="constrained")[1] if ax is None else ax
    colours = colormaps["tab10"].colors if len(lines) <= 10 else colormaps["viridis"](np.linspace(0, 0.95, len(lines)))
    drawn, by_group = [], [rates for _, rates in lines]
    for (name, rates), colour in zip(lines, colours):
        shown = np.where(np.asarray(rates) > 0, rates, np.nan)
        drawn += ax.plot(updates, shown, label=name, color=colour, drawstyle="steps-mid")
    if any(max(now) > _WIDE * min(now) for now in (list(filter(None, rates)) for rates in zip(*by_group)) if now):
        ax.set_yscale("log")
    ax.set(xlabel="update", ylabel="learning rate", xlim=(updates[0] - 0.5, updates[-1] + 0.5))
    chosen = [drawn[i] for i in sorted({round(i) for i in np.linspace(0, len(drawn) - 1, min(len(drawn), _LEGEND))})]
    title = f"{len(chosen)} of {len(drawn)} groups" if len(chosen) < len(drawn) else None
    ax.legend(handles=chosen, title=title, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax
