"""The stages or the layers that a recipe gives multipliers to, each with its name."""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence

from mxnet.gluon import Block

from .._mxnet import is_auxiliary
from ..groups.param_group import ParamGroup
from ..groups.targets import Multiplier, collect, describe, is_target
from .network_tree import Node
from .stages import as_block, layers_by_stage


class NamedTarget(NamedTuple):
    """A stage or a layer, its name, and the network that it is part of if the user gave one."""

    name: str
    target: Any
    root: Block | None

    def group(self, lr_mult: Multiplier) -> ParamGroup:
        """Return a group of this target."""
        return ParamGroup._in_network(self.root, self.target, lr_mult, name=self.name)


def named_stages(blocks_or_net: Any) -> list[NamedTarget]:
    """Return the stages of a network, or the entries of a list; raise an error if any parameter is in two of them."""
    if not isinstance(blocks_or_net, Block):
        return _from_list(blocks_or_net)
    stages = enumerate(layers_by_stage(blocks_or_net), 1)
    return _from_network(
        blocks_or_net, [(f"stage{number}", [node for layer in layers for node in layer]) for number, layers in stages]
    )


def named_layers(blocks_or_net: Any) -> list[NamedTarget]:
    """Return the layers of a network, or the entries of a list; raise an error if any parameter is in two of them."""
    if not isinstance(blocks_or_net, Block):
        return _from_list(blocks_or_net)
    named: list[tuple[str, Sequence[Node]]] = []
    for number, layers in enumerate(layers_by_stage(blocks_or_net), 1):
        names = [f"stage{number} layer{place}" for place in range(1, len(layers) + 1)]
        named += zip(names if len(layers) > 1 else [f"stage{number}"], layers)
    return _from_network(blocks_or_net, named)


def check_disjoint(targets: Sequence[tuple[str, Any]]) -> None:
    """Raise ValueError if there are no targets, if one has nothing to train, or if two share a parameter.

    Each target comes with the words for it in error messages.
    """
    if not targets:
        raise ValueError("expected a network or a list of Blocks, got an empty list")
    holder: dict[Any, str] = {}
    for where, target in targets:
        params = [param for param in collect(target, where).values() if not is_auxiliary(param)]
        if not params:
            raise ValueError(f"{where} holds no parameter that could train; leave it out of the list")
        for param in params:
            if param in holder:
                raise ValueError(f"Parameter {param.name!r} is in {holder[param]} and in {where}; name it once")
            holder[param] = where


def _from_list(blocks: Any) -> list[NamedTarget]:
    if not isinstance(blocks, (list, tuple)):
        raise TypeError(f"expected a network or a list of Blocks, got {describe(blocks)}")
    for number, target in enumerate(blocks):
        if not is_target(target):
            raise TypeError(f"blocks[{number}] must be a Block or another target, got {describe(target)}")
    check_disjoint([(describe(target), target) for target in blocks])
    return [NamedTarget(f"stage{number}", target, None) for number, target in enumerate(blocks, 1)]


def _from_network(net: Block, named: Sequence[tuple[str, Sequence[Node]]]) -> list[NamedTarget]:
    """Make targets of ``named`` nodes; raise ValueError if they leave out a parameter of ``net``."""
    found = [NamedTarget(name, as_block(net, nodes, name), net) for name, nodes in named]
    held = {param for each in found for param in collect(each.target, each.name).values()}
    missing = [param.name for param in net.collect_params().values() if param not in held]
    if missing:
        raise ValueError(
            f"no stage of {describe(net)} holds {', '.join(missing[:3])}; pass its Blocks instead, input to output"
        )
    check_disjoint([(describe(each.target), each.target) for each in found])
    return found
