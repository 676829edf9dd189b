"""What people do with multipliers, in a line each: lists of `ParamGroup` made from a network or its Blocks."""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence

from mxnet.gluon import Block

from .._mxnet import is_auxiliary
from ..groups.param_group import ParamGroup
from ..groups.targets import Multiplier, collect, describe, is_target
from .stages import as_block, layers_by_stage


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
