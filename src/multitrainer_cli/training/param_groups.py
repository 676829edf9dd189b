"""Parameter groups from the options: --lr-mult, --freeze, --unfreeze-at and the recipes."""

from __future__ import annotations

import argparse
from typing import Any, Iterable, NamedTuple, Sequence

from mxnet import gluon

from multitrainer import (
    MultiLRTrainer,
    ParamGroup,
    _mxnet,
    discriminative,
    layerwise_decay,
    no_weight_decay,
    stages,
    unfreeze_at,
)
from multitrainer.groups.targets import Multiplier, check_multiplier

from ..arguments import defaults
from ..arguments.values import parse_bounds, parse_multiplier, parse_unfreezing
from ..errors import UserError
from ..ranks.exchange import Ranks
from . import network
from .optimizer import OptimizerChoice
from .schedule import TrainingLength

MAX_LISTED = 4  # groups that a line has room for


class _GroupSpec(NamedTuple):
    """A group to be: parameters of the network by name, and their multiplier.

    Together, the specs of a network hold every parameter once.
    """

    name: str
    params: dict[str, gluon.Parameter]
    lr_mult: Multiplier

    def make_group(self, net: gluon.Block) -> ParamGroup:
        return ParamGroup._in_network(net, self.params, self.lr_mult, name=self.name)

    def frozen_until(self, update: int) -> _GroupSpec:
        """Return the spec with a multiplier of 0 until an update; a part that is frozen for good stays frozen."""
        final = self.lr_mult.lr_mult if isinstance(self.lr_mult, unfreeze_at) else self.lr_mult
        return self if final == 0 else self._replace(lr_mult=unfreeze_at(update, final))


def build_groups(net: gluon.Block, head: str, args: argparse.Namespace, length: TrainingLength) -> list[ParamGroup]:
    """Turn the options, or their absence, into groups that hold the whole network.

    Raises
    ------
    UserError
        If an option names an unknown part, names a part twice, or has no effect.
    """
    try:
        specs = _initial_specs(net, head, args)
        specs = _apply_multipliers(specs, net, args)
        specs = _apply_unfreezing(specs, net, head, args, length)
        groups = [spec.make_group(net) for spec in specs]
        return [*groups, no_weight_decay(net)] if args.no_bias_decay else groups
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def make_trainer(
    net: gluon.Block,
    head: str,
    args: argparse.Namespace,
    length: TrainingLength,
    optimizer: OptimizerChoice,
    ranks: Ranks,
    max_grad_norm: float | None = None,
) -> MultiLRTrainer:
    """Make the trainer of the groups that the options ask for; what is wrong with them is a UserError."""
    groups = build_groups(net, head, args, length)
    options = {"accumulate": length.accumulate, "max_grad_norm": max_grad_norm}
    try:
        trainer = ranks.make_trainer(groups, optimizer.name, optimizer.settings, **options)
    except (TypeError, ValueError) as error:
        option = f"--clip-grad {max_grad_norm:g}: " if "max_grad_norm" in str(error) else ""
        raise UserError(f"{option}{error}") from error
    if not any(trainer.learning_rates.values()):
        raise UserError("every part of the network is frozen; leave one to be trained")
    return trainer


def describe_unfreezing(trainer: MultiLRTrainer, length: TrainingLength) -> str:
    """Return a line for each update that unfreezes groups."""
    unfrozen: dict[int, list[str]] = {}
    for group in trainer.groups:
        if isinstance(group.lr_mult, unfreeze_at):
            unfrozen.setdefault(group.lr_mult.num_update, []).append(f"{group.name} ({group.lr_mult.lr_mult:.4g})")
    epochs = {length.first_update(epoch): epoch for epoch in range(1, length.epochs + 1)}
    lines = []
    for update, names in sorted(unfrozen.items()):
        shown = ", ".join(names) if len(names) <= MAX_LISTED else f"{names[0]} to {names[-1]}, {len(names)} groups"
        lines.append(f"epoch {epochs[update]}, update {update}, unfreezes {shown}")
    return "".join(f"{line}\n" for line in lines)


def _initial_specs(net: gluon.Block, head: str, args: argparse.Namespace) -> list[_GroupSpec]:
    """Divide the network by a recipe; without one, into the loaded backbone and the new head."""
    if args.layer_decay is not None:
        return [_spec_of(group) for group in layerwise_decay(net, args.layer_decay)]
    if args.discriminative is not None:
        return [_spec_of(group) for group in discriminative(net, *parse_bounds(args.discriminative))]
    everything = dict(net.collect_params().items())
    if args.lr_mult or args.freeze or not network.has_weights(args):
        return [_GroupSpec("net", everything, 1.0)]
    return _split_off([_GroupSpec("backbone", everything, defaults.BACKBONE_MULT)], head, network.find(net, head), 1.0)


def _spec_of(group: ParamGroup) -> _GroupSpec:
    params = {param.name: param for param in _parameters(group.params)}
    return _GroupSpec(group.name or "", params, 1.0 if group.lr_mult is None else group.lr_mult)


def _apply_multipliers(specs: list[_GroupSpec], net: gluon.Block, args: argparse.Namespace) -> list[_GroupSpec]:
    """Make a group of its own of every part that --lr-mult or --freeze names."""
    multipliers = [parse_multiplier(text) for text in args.lr_mult or []]
    multipliers += [(path, 0.0) for path in args.freeze or []]
    multipliers.sort(key=lambda item: item[0].count("."))  # a part after the one that contains it
    paths = [path for path, _ in multipliers]
    repeated = sorted({path for path in paths if paths.count(path) > 1})
    if repeated:
        raise UserError(f"{', '.join(repeated)}: given more than once by --lr-mult and --freeze; keep one of them")
    for path, multiplier in multipliers:
        part = network.find(net, path)
        specs = _split_off(specs, path, part, check_multiplier(multiplier, f"the multiplier of {path}"))
    return specs


def _apply_unfreezing(
    specs: list[_GroupSpec], net: gluon.Block, head: str, args: argparse.Namespace, length: TrainingLength
) -> list[_GroupSpec]:
    """Freeze every part that --unfreeze-at names until its epoch."""
    for path, epochs in parse_unfreezing(args.unfreeze_at or [], length.epochs):
        updates = [length.first_update(epoch) for epoch in epochs]
        if path is not None:
            specs = _freeze_until(updates[0], specs, _parameters(network.find(net, path)), path)
        elif len(epochs) > 1:
            specs = _unfreeze_by_stage(specs, net, epochs, updates)
        else:
            backbone = set(net.collect_params().values()) - set(_parameters(network.find(net, head)))
            specs = _freeze_until(updates[0], specs, backbone, "backbone")
    return specs


def _unfreeze_by_stage(
    specs: list[_GroupSpec], net: gluon.Block, epochs: Sequence[int], updates: Sequence[int]
) -> list[_GroupSpec]:
    found = stages(net)
    if len(epochs) != len(found) - 1:
        raise UserError(
            f"--unfreeze-at {','.join(map(str, epochs))}: the network has {len(found)} stages, so expected "
            f"{len(found) - 1} epochs, from the last stage but one down to the first"
        )
    for number, update in zip(range(len(found) - 1, 0, -1), updates):
        specs = _freeze_until(update, specs, _parameters(found[number - 1]), f"stage{number}")
    return specs


def _freeze_until(
    update: int, specs: Sequence[_GroupSpec], params: Iterable[gluon.Parameter], name: str
) -> list[_GroupSpec]:
    """Freeze some parameters until an update; a group that holds others too is divided."""
    chosen = set(params)
    result, delayed = [], False
    for spec in specs:
        inside, outside = _partition(spec, chosen)
        if outside:
            result.append(spec._replace(params=outside))
        if inside:
            label = _label_piece(spec.name, name) if outside else spec.name
            frozen = _GroupSpec(label, inside, spec.lr_mult).frozen_until(update)
            delayed = delayed or frozen.lr_mult != 0
            result.append(frozen)
    if not delayed:
        raise UserError(f"--unfreeze-at: {name} is frozen by --freeze or a multiplier of 0; keep one of them")
    return result


def _label_piece(group: str, piece: str) -> str:
    """Name a piece of a group: by itself if the group is the whole network or the piece's path begins with its name."""
    return piece if group in ("net", "backbone") or piece.startswith(f"{group}.") else f"{group} {piece}"


def _split_off(specs: Sequence[_GroupSpec], name: str, part: Any, lr_mult: Multiplier) -> list[_GroupSpec]:
    """Move a part of the network from the groups that hold it to a group of its own."""
    params = _parameters(part)
    rest = [spec._replace(params=_partition(spec, set(params))[1]) for spec in specs]
    rest = [spec for spec in rest if not all(map(_mxnet.is_auxiliary, spec.params.values()))]
    return rest + [_GroupSpec(name, {param.name: param for param in params}, lr_mult)]


def _partition(
    spec: _GroupSpec, chosen: set[gluon.Parameter]
) -> tuple[dict[str, gluon.Parameter], dict[str, gluon.Parameter]]:
    """Divide the parameters of a group into the chosen ones and the others."""
    inside = {name: param for name, param in spec.params.items() if param in chosen}
    outside = {name: param for name, param in spec.params.items() if param not in chosen}
    return inside, outside


def _parameters(target: Any) -> list[gluon.Parameter]:
    """Return the Parameters of a Block or Parameter, or of several."""
    if isinstance(target, gluon.Parameter):
        return [target]
    if isinstance(target, (list, tuple)):
        return [param for each in target for param in _parameters(each)]
    return list((target.collect_params() if isinstance(target, gluon.Block) else target).values())
