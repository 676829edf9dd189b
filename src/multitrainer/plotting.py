"""Plot learning rates over the updates."""

from __future__ import annotations

import numbers
from typing import Any, Mapping, Sequence

import numpy as np

LEGEND_ENTRIES = 20  # as many as fit beside the axes
LOG_SCALE_RATIO = 10  # between the rates of one update


def plot_learning_rates(trainer: Any, num_updates: int, ax: Any = None) -> Any:
    """Plot the learning rate of each group over the next updates, without training.

    Parameters
    ----------
    trainer : MultiLRTrainer
        It is not changed: the rates come from copies of its lr_scheduler and its schedules. A plain function cannot be
        copied; one that counts its calls counts these too.
    num_updates : int
        How many updates to draw, from the trainer's next one on.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on; by default those of a new figure of matplotlib.pyplot.

    Returns
    -------
    matplotlib.axes.Axes
        One line for each group, labelled with its name. The line has a gap while the group is frozen. The axis is
        logarithmic if the rates of one update differ by more than a factor of 10. The legend names at most 20 groups.

    Raises
    ------
    TypeError, ValueError
        If ``trainer`` is not a `MultiLRTrainer`, ``num_updates`` is not a whole number above 0, or a schedule cannot be
        copied.
    ImportError
        If matplotlib is not installed, naming the extra that installs it.

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
    updates, lines = planned(range(int(num_updates)))
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plot_learning_rates needs matplotlib: pip install 'multitrainer[plot]'") from error
    ax = pyplot.subplots(figsize=(9, 4.5), layout="constrained")[1] if ax is None else ax
    draw_learning_rates(ax, updates, lines)
    ax.set(xlabel="update", ylabel="learning rate")
    return ax


def draw_learning_rates(
    ax: Any,
    updates: Sequence[int],
    lines: Sequence[tuple[str, Sequence[float]]],
    styles: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Draw the label and the learning rates of each group on ``ax``, as `plot_learning_rates` describes it.

    ``styles`` are properties of each line for matplotlib; by default, each has a colour of its own.
    """
    from matplotlib import colormaps

    count = len(lines)
    if styles is None:
        colours = colormaps["tab10"].colors if count <= 10 else colormaps["viridis"](np.linspace(0, 0.95, count))
        styles = [{"color": colour, "drawstyle": "steps-mid"} for colour in colours]
    drawn = []
    for (label, rates), style in zip(lines, styles):
        drawn += ax.plot(updates, np.where(np.asarray(rates) > 0, rates, np.nan), label=label, **style)
    by_update = [[rate for rate in rates if rate] for rates in zip(*(rates for _, rates in lines))]
    if any(max(rates) > LOG_SCALE_RATIO * min(rates) for rates in by_update if rates):
        ax.set_yscale("log")
    ax.set_xlim(updates[0] - 0.5, updates[-1] + 0.5)
    named = sorted({round(i) for i in np.linspace(0, count - 1, min(count, LEGEND_ENTRIES))})
    title = f"{len(named)} of {count} groups" if len(named) < count else None
    handles = [drawn[i] for i in named]
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend(handles=handles, title=title, fontsize="small", labelspacing=0.25, **place)
