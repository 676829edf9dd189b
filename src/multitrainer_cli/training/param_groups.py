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
from ..errors import UserError, naming
from ..ranks.exchange import Ranks
from . import network
from .optimizer import OptimizerChoice
from .schedule import TrainingLength

LOWEST_RATE, HIGHEST_RATE = 1e-20, 1e20  # well within float32, whatever an optimizer makes of them


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
        final = _final(self.lr_mult)
        return self if final == 0 else self._replace(lr_mult=unfreeze_at(update, final))


def build_groups(net: gluon.Block, head: str, args: argparse.Namespace, length: TrainingLength) -> list[ParamGroup]:
    """Turn the options, or their absence, into groups that hold the whole network.

    Raises
    ------
    UserError
        If an option names an unknown part, names a part twice, or has no effect.
    """
    specs = _initial_specs(net, head, args)
    specs = _apply_multipliers(specs, net, args)
    specs = _apply_unfreezing(specs, net, head, args, length)
    groups = [spec.make_group(net) for spec in specs]
    if args.no_bias_decay:
        with naming("--no-bias-decay"):
            groups.append(no_weight_decay(net))
    return groups


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
        of_norm = max_grad_norm is not None and "max_grad_norm" in str(error)
        option = f"--clip-grad {max_grad_norm:g}" if of_norm else f"--optimizer {optimizer.name}"
        raise UserError(f"{option}: {error}") from error
    if not any(row.lr_mult for row in trainer._rows()):
        raise UserError(
            "every part of the network is frozen in the first epoch, by --freeze, --unfreeze-at or multipliers of 0; "
            "leave one to be trained"
        )
    _check_rates(trainer)
    return trainer


def _check_rates(trainer: MultiLRTrainer) -> None:
    """Refuse a learning rate that MXNet cannot compute with, in float32."""
    for group in trainer.groups:
        multiplier = _final(group.lr_mult)
        rate = trainer.optimizer.lr * multiplier
        if multiplier and not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise UserError(
                f"--lr {trainer.optimizer.lr:g} times {multiplier:g}, the multiplier of {group.name}, is {rate:g}; "
                f"expected a learning rate from {LOWEST_RATE:g} to {HIGHEST_RATE:g}, which float32 can hold"
            )


def _final(lr_mult: Multiplier | None) -> float:
    """Return the multiplier of a group in the last epoch; 0 if it has none."""
    if isinstance(lr_mult, unfreeze_at):
        return _final(lr_mult.lr_mult)
    return float(lr_mult) if isinstance(lr_mult, (int, float)) else 0.0


def _initial_specs(net: gluon.Block, head: str, args: argparse.Namespace) -> list[_GroupSpec]:
    """Divide the network by a recipe; without one, into the loaded backbone and the new head."""
    if args.layer_decay is not None:
        with naming(f"--layer-decay {args.layer_decay:g}"):
            return [_spec_of(group) for group in layerwise_decay(net, args.layer_decay)]
    if args.discriminative is not None:
        bounds = parse_bounds(args.discriminative)
        with naming(f"--discriminative {args.discriminative}"):
            return [_spec_of(group) for group in discriminative(net, *bounds)]
    everything = dict(net.collect_params().items())
    if not network.has_weights(args):
        return [_GroupSpec("net", everything, 1.0)]
    return _split_off([_GroupSpec("backbone", everything, defaults.BACKBONE_MULT)], head, network.find(net, head), 1.0)


def _spec_of(group: ParamGroup) -> _GroupSpec:
    params = {param.name: param for param in _parameters(group.params)}
    return _GroupSpec(group.name or "", params, 1.0 if group.lr_mult is None else group.lr_mult)


def _apply_multipliers(specs: list[_GroupSpec], net: gluon.Block, args: argparse.Namespace) -> list[_GroupSpec]:
    """Make a group of its own of every part that --lr-mult or --freeze names."""
    multipliers = [(*parse_multiplier(text), f"--lr-mult {text}") for text in args.lr_mult or []]
    multipliers += [(path, 0.0, f"--freeze {path}") for path in args.freeze or []]
    multipliers.sort(key=lambda item: item[0].count("."))  # a part after the one that contains it
    named: dict[str, str] = {}
    for path, multiplier, option in multipliers:
        if path in named:
            raise UserError(f"{named[path]} and {option} are about the same part; keep one of them")
        named[path] = option
        with naming(option):
            part = network.find(net, path)
            specs = _split_off(specs, path, part, check_multiplier(multiplier, "MULT"))
    return specs


def _apply_unfreezing(
    specs: list[_GroupSpec], net: gluon.Block, head: str, args: argparse.Namespace, length: TrainingLength
) -> list[_GroupSpec]:
    """Freeze every part that --unfreeze-at names until its epoch."""
    for path, epochs in parse_unfreezing(args.unfreeze_at or [], length.epochs):
        updates = [length.first_update(epoch) for epoch in epochs]
        with naming(f"--unfreeze-at {f'{path}=' if path else ''}{','.join(map(str, epochs))}"):
            if path is not None:
                specs = _freeze_until(updates[0], specs, _parameters(network.find(net, path)), path)
            elif len(epochs) > 1:
                specs = _unfreeze_by_stage(specs, net, updates)
            else:
                backbone = set(net.collect_params().values()) - set(_parameters(network.find(net, head)))
                specs = _freeze_until(updates[0], specs, backbone, "backbone")
    return specs


def _unfreeze_by_stage(specs: list[_GroupSpec], net: gluon.Block, updates: Sequence[int]) -> list[_GroupSpec]:
    found = stages(net)
    if len(updates) != len(found) - 1:
        raise ValueError(
            f"the network has {len(found)} stages, so expected {len(found) - 1} epochs, from the last stage but one "
            "down to the first"
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
        raise ValueError(f"{name} is frozen by --freeze or a multiplier of 0; keep one of them")
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
