"""Unfreeze a network stage by stage."""

from __future__ import annotations

import numbers
from typing import Any, Sequence

from ..groups.param_group import ParamGroup
from ..groups.targets import Multiplier, check_multiplier, describe
from .layers import check_disjoint, named_stages


def gradual_unfreezing(
    blocks_or_groups: Any, every: int | Sequence[int], lr_mult: Multiplier = 1.0
) -> list[ParamGroup]:
    """Train the last stage alone at first, then unfreeze one stage after another, from the output down.

    Parameters
    ----------
    blocks_or_groups : Block or list of targets or of ParamGroup
        A network, which is divided into stages; or the stages, from input to output. Groups, such as those that other
        recipes return, have their own multipliers from the update on that unfreezes them.
    every : int or sequence of int
        The number of updates from one unfreezing to the next; or, for each stage but the last, from the output down,
        the number of the update that unfreezes it. The first update is number 1.
    lr_mult : float or callable
        The multiplier of stages that are not frozen. It cannot be combined with groups.

    Returns
    -------
    list of ParamGroup
        From input to output, named ``stage3``, with `unfreeze_at` schedules as multipliers.

    Raises
    ------
    TypeError, ValueError
        As `layerwise_decay` does; if ``every`` is not a positive number of updates, or is a sequence of the wrong
        length or out of order.

    Notes
    -----
    This is the gradual unfreezing of ULMFiT (Howard and Ruder 2018, arXiv:1801.06146), which unfreezes one layer in
    each epoch.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import discriminative, gradual_unfreezing
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1()
    >>> groups = gradual_unfreezing(net, every=200)
    >>> [group.lr_mult for group in groups[-3:]]
    [unfreeze_at(401), unfreeze_at(201), 1.0]
    >>> gradual_unfreezing(discriminative(net, 0.01, 1), every=200)[0].lr_mult
    unfreeze_at(1001, lr_mult=0.01)
    """
    multiplier = check_multiplier(lr_mult, "lr_mult of gradual_unfreezing")
    if _has_group(blocks_or_groups):
        groups = _copy_groups(blocks_or_groups)
        if lr_mult != 1:
            raise ValueError(f"lr_mult {lr_mult!r} was given beside groups, which have multipliers of their own")
    else:
        groups = [stage.group(multiplier) for stage in named_stages(blocks_or_groups)]
    updates = [1, *_unfreezing_updates(every, len(groups) - 1)]
    for group, update in zip(reversed(groups), updates):
        own = 1.0 if group.lr_mult is None else group.lr_mult
        group.lr_mult = own if update == 1 else unfreeze_at(update, own)
    return groups


class unfreeze_at:  # noqa: N801  users call it like a function, and its repr is that call
    """A schedule that freezes until an update: 0 before it, and a multiplier from it on.

    Parameters
    ----------
    num_update : int
        The number of the first update that trains. The first update of all is number 1.
    lr_mult : float or callable
        The multiplier from then on. A schedule is called with the trainer's update number.

    Raises
    ------
    TypeError, ValueError
        If ``num_update`` is not a whole number above 0, or ``lr_mult`` is not a multiplier.

    Examples
    --------
    >>> from multitrainer import unfreeze_at
    >>> schedule = unfreeze_at(100, lr_mult=0.1)
    >>> schedule, schedule(99), schedule(100)
    (unfreeze_at(100, lr_mult=0.1), 0.0, 0.1)
    """

    def __init__(self, num_update: int, lr_mult: Multiplier = 1.0) -> None:
        self.num_update = _check_update(num_update, "num_update of unfreeze_at")
        self.lr_mult = check_multiplier(lr_mult, "lr_mult of unfreeze_at")

    def __call__(self, num_update: int) -> float:
        """Return the multiplier of update ``num_update``."""
        if num_update < self.num_update:
            return 0.0
        return self.lr_mult(num_update) if callable(self.lr_mult) else self.lr_mult

    def __repr__(self) -> str:
        return f"unfreeze_at({self.num_update}{'' if self.lr_mult == 1 else f', lr_mult={self.lr_mult!r}'})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, unfreeze_at):
            return NotImplemented
        return (self.num_update, self.lr_mult) == (other.num_update, other.lr_mult)

    def __hash__(self) -> int:
        return hash((self.num_update, self.lr_mult))


def _has_group(blocks_or_groups: Any) -> bool:
    return isinstance(blocks_or_groups, (list, tuple)) and any(
        isinstance(each, ParamGroup) for each in blocks_or_groups
    )


def _copy_groups(groups: Sequence[Any]) -> list[ParamGroup]:
    """Return copies of ``groups``, with a name for each; raise an error if they are not groups or share a parameter."""
    copies = []
    for number, group in enumerate(groups):
        if not isinstance(group, ParamGroup):
            raise TypeError(f"groups[{number}] must be a ParamGroup like the others, got {describe(group)}")
        name = group.name or f"stage{number + 1}"
        copies.append(ParamGroup._in_network(group.root, group.params, group.lr_mult, group.wd_mult, name))
    check_disjoint([(repr(group), group.params) for group in copies])
    return copies


def _unfreezing_updates(every: Any, count: int) -> list[int]:
    """Return the numbers of the updates that unfreeze ``count`` stages, from the output down."""
    if isinstance(every, str) or not isinstance(every, Sequence):
        step = _check_update(every, "every")
        return [1 + step * (i + 1) for i in range(count)]
    updates = [_check_update(update, f"every[{i}]") for i, update in enumerate(every)]
    if len(updates) != count:
        raise ValueError(f"every names {len(updates)} updates, but there are {count} stages before the last")
    if updates != sorted(updates):
        raise ValueError(f"every must not decrease, got {list(every)!r}: stages are unfrozen from the output down")
    return updates


def _check_update(value: Any, where: str) -> int:
    """Return the number of an update, or of updates, as an int; raise an error that begins with ``where``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{where} must be a whole number of updates, got {value!r}")
    if value < 1:
        raise ValueError(f"{where} must be at least 1, the number of the first update, got {value!r}")
    return int(value)
