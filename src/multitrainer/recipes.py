"""What people do with multipliers, in a line each: lists of `ParamGroup` made from a network or its Blocks."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple, Sequence

from mxnet.gluon import Block

from ._mxnet import is_auxiliary
from .groups import ParamGroup
from .ordering import as_block, layers_by_stage
from .targets import Multiplier, check_multiplier, collect, describe, is_target

_UNDECAYED = ("bias", "gamma", "beta")


def layerwise_decay(blocks_or_net: Any, decay: float, head: float = 1.0) -> list[ParamGroup]:
    """Let each layer learn slower than the one after it, by a constant factor.

    Parameters
    ----------
    blocks_or_net : Block or list of targets
        A network, which is divided into its stages and those into layers (a residual Block is one layer); or what is
        to be taken for its layers, from input to output. Only of a network is it certain that no parameter is left
        out.
    decay : float
        The factor from one layer to the one before it, in (0, 1].
    head : float
        The multiplier of the last layer, above 0.

    Returns
    -------
    list of ParamGroup
        From input to output, named ``stage3 layer2``, or ``stage6`` where a stage has one layer. The last one's
        ``lr_mult`` is ``head``, each earlier one's ``decay`` times the next one's.

    Raises
    ------
    TypeError, ValueError
        If a number is not in its range, or makes a multiplier too small to be told from 0; if the network cannot be
        ordered (see `stages`); if the list is empty, holds no target or one without parameters, or the same parameter
        twice.

    Notes
    -----
    Layer-wise decay of ULMFiT's and ELECTRA's fine-tuning; of images, BEiT's (Bao et al. 2022, arXiv:2106.08254) and
    that of ``param_groups_layer_decay`` in timm/optim/_param_groups.py.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer, layerwise_decay, no_weight_decay
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1()
    >>> net.initialize()
    >>> groups = layerwise_decay(net, 0.5)
    >>> [(group.name, group.lr_mult) for group in groups[-4:]]
    [('stage4 layer2', 0.125), ('stage5 layer1', 0.25), ('stage5 layer2', 0.5), ('stage6', 1.0)]
    >>> trainer = MultiLRTrainer([*groups, no_weight_decay(net)], 'sgd', {'learning_rate': 0.1, 'wd': 1e-4})
    """
    decay, head = _positive(decay, "decay"), _positive(head, "head")
    if decay > 1:
        raise ValueError(f"decay must be at most 1, got {decay!r}: layers near the input would learn fastest")
    parts = _parts(blocks_or_net, by_layer=True)
    multipliers = [head * decay**distance for distance in reversed(range(len(parts)))]
    if multipliers[0] == 0:
        raise ValueError(
            f"decay {decay!r} over {len(parts)} layers makes the first multiplier 0, which would freeze it"
        )
    return [part.group(multiplier) for part, multiplier in zip(parts, multipliers)]


def discriminative(blocks_or_net: Any, lowest: float, highest: float) -> list[ParamGroup]:
    """Spread learning rates over the stages: the first gets the lowest, the last the highest, by equal factors.

    Parameters
    ----------
    blocks_or_net : Block or list of targets
        A network, which is divided into its stages; or what is to be taken for them, from input to output.
    lowest, highest : float
        The multipliers of the first and of the last stage, above 0.

    Returns
    -------
    list of ParamGroup
        From input to output, named ``stage3``. A single stage gets ``highest``.

    Raises
    ------
    TypeError, ValueError
        As `layerwise_decay` does; if ``lowest`` is above ``highest``.

    Notes
    -----
    Discriminative fine-tuning of ULMFiT (Howard and Ruder 2018, arXiv:1801.06146); fastai writes
    ``slice(lowest, highest)``.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import discriminative
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1()
    >>> [(group.name, round(group.lr_mult, 4)) for group in discriminative(net, 0.01, 1)][::2]
    [('stage1', 0.01), ('stage3', 0.0631), ('stage5', 0.3981)]
    """
    lowest, highest = _positive(lowest, "lowest"), _positive(highest, "highest")
    if lowest > highest:
        raise ValueError(f"lowest must not be above highest, got {lowest!r} and {highest!r}")
    parts = _parts(blocks_or_net)
    last = len(parts) - 1
    between = [math.exp(math.log(lowest) + (math.log(highest) - math.log(lowest)) * i / last) for i in range(1, last)]
    multipliers = [lowest, *between, highest] if last else [highest]
    return [part.group(multiplier) for part, multiplier in zip(parts, multipliers)]


def gradual_unfreezing(
    blocks_or_groups: Any, every: int | Sequence[int], lr_mult: Multiplier = 1.0
) -> list[ParamGroup]:
    """Train the last stage alone at first, then unfreeze one stage after another, from the output down.

    Parameters
    ----------
    blocks_or_groups : Block or list of targets or of ParamGroup
        A network, which is divided into its stages; or what is to be taken for them, from input to output. Groups, as
        other recipes make them, keep their multipliers from the update on at which they are unfrozen.
    every : int or sequence of int
        How many updates pass before the next stage is unfrozen; or a calendar, the number of the update that unfreezes
        each stage but the last, from the output down. The first update is number 1.
    lr_mult : float or callable
        The multiplier of what is not frozen; not to be given beside groups.

    Returns
    -------
    list of ParamGroup
        From input to output, named ``stage3``, with schedules of `unfreeze_at` for multipliers.

    Raises
    ------
    TypeError, ValueError
        As `layerwise_decay` does; if ``every`` is no positive number of updates, or a calendar of another length or
        out of order.

    Notes
    -----
    Gradual unfreezing of ULMFiT (Howard and Ruder 2018, arXiv:1801.06146), which unfreezes a layer an epoch.

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
    groups = _given_groups(blocks_or_groups)
    if groups is None:
        groups = [part.group(multiplier) for part in _parts(blocks_or_groups)]
    elif lr_mult != 1:
        raise ValueError(f"lr_mult {lr_mult!r} was given beside groups, which have multipliers of their own")
    updates = [1, *_calendar(every, len(groups) - 1)]
    for group, update in zip(reversed(groups), updates):
        own = 1.0 if group.lr_mult is None else group.lr_mult
        group.lr_mult = own if update == 1 else unfreeze_at(update, own)
    return groups


def no_weight_decay(net: Any) -> ParamGroup:
    """Leave weight decay to the weights: a group of every bias, gamma and beta, with ``wd_mult`` 0.

    Parameters
    ----------
    net : Block or any other target
        What to search. Parameters are told by the ends of their names, as Gluon's own layers name them.

    Returns
    -------
    ParamGroup
        It sets no ``lr_mult``, so it goes into one list with a recipe that does.

    Raises
    ------
    TypeError, ValueError
        If ``net`` is no target, or has no such parameter.

    Notes
    -----
    "Bag of tricks" (He et al. 2018, arXiv:1812.01187, section 3.1); timm and GluonCV do it for whole networks.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import no_weight_decay
    >>> net = mx.gluon.nn.Dense(2, prefix='fc_')
    >>> no_weight_decay(net)
    ParamGroup(dict of 1 Parameters, wd_mult=0.0, name='no_weight_decay')
    """
    found = {
        name: param
        for name, param in collect(net, "no_weight_decay").items()
        if name.endswith(_UNDECAYED) and not is_auxiliary(param)
    }
    if not found:
        raise ValueError(
            f"no_weight_decay: {describe(net)} has no parameter whose name ends in {', '.join(_UNDECAYED)}; for others "
            "write ParamGroup(target, wd_mult=0)"
        )
    group = ParamGroup(found, wd_mult=0, name="no_weight_decay")
    group.within = net if isinstance(net, Block) else None
    return group


class unfreeze_at:  # noqa: N801  it is called as a function, and shown as the call that made it
    """A schedule: 0, which is frozen, before an update, and a multiplier from it on.

    Parameters
    ----------
    num_update : int
        The number of the first update that trains; the first update of a training is number 1.
    lr_mult : float or callable
        The multiplier from then on; a schedule is asked with the trainer's update number.

    Raises
    ------
    TypeError, ValueError
        If ``num_update`` is not a whole number above 0, or ``lr_mult`` no multiplier.

    Examples
    --------
    >>> from multitrainer import unfreeze_at
    >>> schedule = unfreeze_at(100, lr_mult=0.1)
    >>> schedule, schedule(99), schedule(100)
    (unfreeze_at(100, lr_mult=0.1), 0.0, 0.1)
    """

    def __init__(self, num_update: int, lr_mult: Multiplier = 1.0) -> None:
        self.num_update = _count(num_update, "num_update of unfreeze_at")
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


class _Part(NamedTuple):
    """A stage or a layer, with its name."""

    name: str
    target: Any
    within: Block | None

    def group(self, lr_mult: Multiplier) -> ParamGroup:
        group = ParamGroup(self.target, lr_mult=lr_mult, name=self.name)
        group.within = self.within
        return group


def _parts(blocks_or_net: Any, by_layer: bool = False) -> list[_Part]:
    """Return the stages or the layers of a network, or of a list its entries; no parameter is left out or twice."""
    if isinstance(blocks_or_net, Block):
        parts = _parts_of(blocks_or_net, by_layer)
    elif isinstance(blocks_or_net, (list, tuple)):
        for number, target in enumerate(blocks_or_net):
            if not is_target(target):
                raise TypeError(f"blocks[{number}] must be a Block or another target, got {describe(target)}")
        parts = [_Part(f"stage{number}", target, None) for number, target in enumerate(blocks_or_net, 1)]
    else:
        raise TypeError(f"expected a network or a list of Blocks, got {describe(blocks_or_net)}")
    _check_disjoint([(describe(part.target), part.target) for part in parts])
    return parts


def _parts_of(net: Block, by_layer: bool) -> list[_Part]:
    parts = []
    for number, stage in enumerate(layers_by_stage(net), 1):
        name = f"stage{number}"
        if not by_layer:
            parts.append(_Part(name, as_block(net, [node for layer in stage for node in layer], name), net))
        for place, layer in enumerate(stage if by_layer else [], 1):
            full = name if len(stage) == 1 else f"{name} layer{place}"
            parts.append(_Part(full, as_block(net, layer, full), net))
    held = {param for part in parts for param in collect(part.target, part.name).values()}
    missing = [param.name for param in net.collect_params().values() if param not in held]
    if missing:
        raise ValueError(
            f"no stage of {describe(net)} holds {', '.join(missing[:3])}; pass its Blocks instead, input to output"
        )
    return parts


def _check_disjoint(parts: Sequence[tuple[str, Any]]) -> None:
    if not parts:
        raise ValueError("expected a network or a list of Blocks, got an empty list")
    holder: dict[Any, str] = {}
    for where, target in parts:
        params = [param for param in collect(target, where).values() if not is_auxiliary(param)]
        if not params:
            raise ValueError(f"{where} holds no parameter that could train; leave it out of the list")
        for param in params:
            if param in holder:
                raise ValueError(f"Parameter {param.name!r} is in {holder[param]} and in {where}; name it once")
            holder[param] = where


def _given_groups(blocks_or_groups: Any) -> list[ParamGroup] | None:
    """Return copies of the groups in a list of groups, or None if it is none."""
    if not (isinstance(blocks_or_groups, (list, tuple)) and any(isinstance(g, ParamGroup) for g in blocks_or_groups)):
        return None
    copies = []
    for number, group in enumerate(blocks_or_groups):
        if not isinstance(group, ParamGroup):
            raise TypeError(f"groups[{number}] must be a ParamGroup like the others, got {describe(group)}")
        copies.append(ParamGroup(group.params, group.lr_mult, group.wd_mult, group.name or f"stage{number + 1}"))
        copies[-1].within = group.within
    _check_disjoint([(repr(group), group.params) for group in copies])
    return copies


def _calendar(every: Any, count: int) -> list[int]:
    """Return the updates that unfreeze ``count`` stages."""
    if isinstance(every, str) or not isinstance(every, Sequence):
        step = _count(every, "every")
        return [1 + step * (i + 1) for i in range(count)]
    updates = [_count(update, f"every[{i}]") for i, update in enumerate(every)]
    if len(updates) != count:
        raise ValueError(f"every names {len(updates)} updates, but there are {count} stages before the last")
    if updates != sorted(updates):
        raise ValueError(f"every must not go back, got {list(every)!r}: it unfreezes from the output down")
    return updates


def _count(value: Any, where: str) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{where} must be a whole number of updates, got {value!r}")
    if value < 1:
        raise ValueError(f"{where} must be at least 1, the number of the first update, got {value!r}")
    return int(value)


def _positive(value: Any, where: str) -> float:
    number = check_multiplier(value, where)
    if callable(number):
        raise TypeError(f"{where} must be a number, got {describe(value)}")
    if number == 0:
        raise ValueError(
            f"{where} must be above 0, got {value!r}; what is to be frozen gets a multiplier of 0 by itself"
        )
    return number
