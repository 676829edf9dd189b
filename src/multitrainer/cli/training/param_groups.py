"""Which part of the network learns how: --lr-mult, --freeze, --unfreeze-at and the recipes, as groups."""

from __future__ import annotations

import argparse
from typing import Any, Iterable, NamedTuple, Sequence

from mxnet import gluon

from ... import (
    MultiLRTrainer,
    ParamGroup,
    _mxnet,
    discriminative,
    layerwise_decay,
    no_weight_decay,
    stages,
    unfreeze_at,
)
from ...groups.targets import Multiplier, check_multiplier
from ..errors import UserError
from ..options import parse_bounds, parse_multiplier, parse_unfreezing, share
from ..ranks.exchange import Ranks
from . import network
from .schedule import Clock

BACKBONE_MULT = 0.1
LISTED = 4  # groups that a line has room for
OPTIONS = ("lr_mult", "freeze", "layer_decay", "discriminative", "no_bias_decay", "unfreeze_at")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    add = parser.add_argument
    add("--lr-mult", metavar="PATH=MULT", action="append", help="train this part at MULT times --lr (repeatable)")
    add("--freeze", metavar="PATH", action="append", help="do not train this part (repeatable)")
    recipes = parser.add_mutually_exclusive_group()
    recipes.add_argument(
        "--layer-decay", metavar="DECAY", type=share, help="train each layer at DECAY times the rate of the next one"
    )
    recipes.add_argument(
        "--discriminative",
        metavar="LO:HI",
        help="train the first stage at LO times --lr, the last one at HI, those between by equal factors",
    )
    add(
        "--no-bias-decay", action="store_true", default=None, help="no weight decay for biases and normalization layers"
    )
    add(
        "--unfreeze-at",
        metavar="[PATH=]EPOCH",
        action="append",
        help="train this part from EPOCH on (repeatable); without PATH, everything but the last layer; with one EPOCH "
        "for each stage but the last, as in 2,4,6, stage by stage from the output down",
    )


class _Part(NamedTuple):
    """Parameters of the network that learn alike; all parts together hold each of them once."""

    name: str
    params: dict[str, gluon.Parameter]
    lr_mult: Multiplier

    def group(self, net: gluon.Block) -> ParamGroup:
        return ParamGroup._in_network(net, self.params, self.lr_mult, name=self.name)

    def delayed(self, update: int) -> _Part:
        """Return the part, frozen until an update; what is frozen for good stays so."""
        own = self.lr_mult.lr_mult if isinstance(self.lr_mult, unfreeze_at) else self.lr_mult
        return self if own == 0 else self._replace(lr_mult=unfreeze_at(update, own))


def groups(net: gluon.Block, head: str, has_weights: bool, args: argparse.Namespace, clock: Clock) -> list[ParamGroup]:
    """Turn the options, or their absence, into groups that hold the whole network.

    Raises
    ------
    UserError
        Where an option names what there is not, twice, or to no effect.
    """
    try:
        parts = _named(_begin(net, head, has_weights, args), net, args)
        parts = _unfreezing(parts, net, head, args, clock)
        found = [part.group(net) for part in parts]
        return [*found, no_weight_decay(net)] if args.no_bias_decay else found
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def make_trainer(entries: list[ParamGroup], optimizer: str, settings: dict[str, Any], ranks: Ranks) -> MultiLRTrainer:
    """Make the trainer, its complaints about the command line turned into a user's error."""
    try:
        trainer = ranks.make_trainer(entries, optimizer, settings)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if not any(trainer.learning_rates.values()):
        raise UserError("every part of the network is frozen; leave one to be trained")
    return trainer


def calendar(trainer: MultiLRTrainer, clock: Clock) -> str:
    """Return a line for each update that unfreezes something; '' where none does."""
    later: dict[int, list[str]] = {}
    for group in trainer.groups:
        if isinstance(group.lr_mult, unfreeze_at):
            later.setdefault(group.lr_mult.num_update, []).append(f"{group.name} ({group.lr_mult.lr_mult:.4g})")
    epochs = {clock.first_update(epoch): epoch for epoch in range(1, clock.epochs + 1)}
    lines = []
    for at, names in sorted(later.items()):
        shown = ", ".join(names) if len(names) <= LISTED else f"{names[0]} to {names[-1]}, {len(names)} groups"
        lines.append(f"epoch {epochs[at]}, update {at}, unfreezes {shown}")
    return "".join(f"{line}\n" for line in lines)


def _begin(net: gluon.Block, head: str, has_weights: bool, args: argparse.Namespace) -> list[_Part]:
    """Divide the network by a recipe; without one, into what keeps its weights and what is new."""
    if args.layer_decay is not None:
        return [_of_group(group) for group in layerwise_decay(net, args.layer_decay)]
    if args.discriminative is not None:
        return [_of_group(group) for group in discriminative(net, *parse_bounds(args.discriminative))]
    everything = dict(net.collect_params().items())
    if args.lr_mult or args.freeze or not has_weights:
        return [_Part("net", everything, 1.0)]
    return _carved([_Part("backbone", everything, BACKBONE_MULT)], head, _held(network.find(net, head)), 1.0)


def _of_group(group: ParamGroup) -> _Part:
    params = {param.name: param for param in _held(group.params)}
    return _Part(group.name or "", params, 1.0 if group.lr_mult is None else group.lr_mult)


def _held(target: Any) -> list[gluon.Parameter]:
    """Return the Parameters of a Block, or of several."""
    if isinstance(target, gluon.Parameter):
        return [target]
    if isinstance(target, (list, tuple)):
        return [param for each in target for param in _held(each)]
    return list((target.collect_params() if isinstance(target, gluon.Block) else target).values())


def _named(parts: list[_Part], net: gluon.Block, args: argparse.Namespace) -> list[_Part]:
    """Give what --lr-mult and --freeze name parts of its own."""
    wanted = [parse_multiplier(text) for text in args.lr_mult or []]
    wanted += [(path, 0.0) for path in args.freeze or []]
    wanted.sort(key=lambda item: item[0].count("."))  # a part after what contains it, whichever option named it
    repeated = {path for path, _ in wanted if [other for other, _ in wanted].count(path) > 1}
    if repeated:
        raise UserError(
            f"{', '.join(sorted(repeated))}: given more than once by --lr-mult and --freeze; keep one of them"
        )
    for path, multiplier in wanted:
        params = _held(network.find(net, path))
        parts = _carved(parts, path, params, check_multiplier(multiplier, f"the multiplier of {path}"))
    return parts


def _carved(parts: Sequence[_Part], name: str, params: Iterable[gluon.Parameter], lr_mult: Multiplier) -> list[_Part]:
    """Make a part of some Parameters, which leave those that held them."""
    chosen = set(params)
    rest = [part._replace(params={n: p for n, p in part.params.items() if p not in chosen}) for part in parts]
    rest = [part for part in rest if not all(map(_mxnet.is_auxiliary, part.params.values()))]
    return rest + [_Part(name, {param.name: param for param in params}, lr_mult)]


def _unfreezing(parts: list[_Part], net: gluon.Block, head: str, args: argparse.Namespace, clock: Clock) -> list[_Part]:
    """Freeze until its epoch what --unfreeze-at names."""
    for path, epochs in parse_unfreezing(args.unfreeze_at or [], clock.epochs):
        updates = [clock.first_update(epoch) for epoch in epochs]
        if path is not None:
            parts = _delayed(parts, _held(network.find(net, path)), path, updates[0])
        elif len(epochs) > 1:
            parts = _by_stage(parts, net, epochs, updates)
        else:
            outside = set(net.collect_params().values()) - set(_held(network.find(net, head)))
            parts = _delayed(parts, outside, "backbone", updates[0])
    return parts


def _by_stage(parts: list[_Part], net: gluon.Block, epochs: Sequence[int], updates: Sequence[int]) -> list[_Part]:
    found = stages(net)
    if len(epochs) != len(found) - 1:
        raise UserError(
            f"--unfreeze-at {','.join(map(str, epochs))}: the network has {len(found)} stages, so expected "
            f"{len(found) - 1} epochs, from the last stage but one down to the first"
        )
    for number, update in zip(range(len(found) - 1, 0, -1), updates):
        parts = _delayed(parts, _held(found[number - 1]), f"stage{number}", update)
    return parts


def _label(part: _Part, name: str) -> str:
    """Name a piece of a part; of the whole network, and of what lies on the way to it, its own name says enough."""
    return name if part.name in ("net", "backbone") or name.startswith(f"{part.name}.") else f"{part.name} {name}"


def _delayed(parts: Sequence[_Part], params: Iterable[gluon.Parameter], name: str, update: int) -> list[_Part]:
    """Freeze some Parameters until an update; a part that holds others too is divided."""
    chosen = set(params)
    result, moved = [], False
    for part in parts:
        inside = {n: p for n, p in part.params.items() if p in chosen}
        outside = {n: p for n, p in part.params.items() if p not in chosen}
        if outside:
            result.append(part._replace(params=outside))
        if inside:
            label = part.name if not outside else _label(part, name)
            later = _Part(label, inside, part.lr_mult).delayed(update)
            moved = moved or later.lr_mult != 0
            result.append(later)
    if not moved:
        raise UserError(f"--unfreeze-at: {name} is frozen by --freeze or a multiplier of 0; keep one of them")
    return result
