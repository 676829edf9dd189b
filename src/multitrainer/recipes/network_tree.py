"""The tree of a network's Blocks, in which each Parameter has exactly one place."""

from __future__ import annotations

from collections import Counter
from typing import Any, Iterator, Sequence

from mxnet.gluon import Block, Parameter, SymbolBlock
from mxnet.gluon.nn import HybridSequential, Sequential
from mxnet.gluon.rnn import HybridSequentialRNNCell, SequentialRNNCell

from .. import _mxnet
from ..groups.targets import describe
from .dataflow import Dataflow

_NORMALIZATION = ("gamma", "beta", "alpha", *_mxnet.STATISTICS)  # ends of names; alpha is that of a PReLU


class Node:
    """A Block of a network, or Parameters of one if ``block`` is None."""

    def __init__(self, block: Block | None, own: Sequence[Parameter], children: Sequence[Node] = ()) -> None:
        self.block = block
        self.children = [child for child in children if child.params]
        self._own = list(own)
        self.params: list[Parameter] = [*own, *(param for child in self.children for param in child.params)]

    def targets(self) -> Iterator[Block | Parameter]:
        """Yield the outermost Blocks that hold these Parameters and no others, and the Parameters left over."""
        if self.block is not None and set(self.block.collect_params().values()) == set(self.params):
            yield self.block
            return
        yield from self._own
        for child in self.children:
            yield from child.targets()

    @property
    def is_sequence(self) -> bool:
        """Whether the children run one after another; those of a symbol are taken to."""
        block = self.block
        if block is None or isinstance(block, (SymbolBlock, SequentialRNNCell, HybridSequentialRNNCell)):
            return bool(self.children)
        if isinstance(block, HybridSequential):
            return type(block).hybrid_forward is HybridSequential.hybrid_forward
        return isinstance(block, Sequential) and type(block).forward is Sequential.forward

    @property
    def repeated(self) -> set[type]:
        """The classes of Block that the children repeat, as residual ones; each such Block is one layer."""
        counts = Counter(
            type(child.block)
            for child in self.children
            if child.block is not None and child.children and not child.is_sequence
        )
        return {kind for kind, count in counts.items() if count > (1 if self.is_sequence else 2)}

    @property
    def holds_stage(self) -> bool:
        """Whether this node, or one below it, repeats a class of Block."""
        return bool(self.repeated) or any(child.holds_stage for child in self.children)

    @property
    def is_norm(self) -> bool:
        """Whether all Parameters belong to a normalization or an activation, or are statistics or constants."""
        return all(param.name.endswith(_NORMALIZATION) or _mxnet.is_auxiliary(param) for param in self.params)

    def __str__(self) -> str:
        return describe(self.params[0] if self.block is None else self.block)


def make_tree(net: Block, dataflow: Dataflow | None) -> Node:
    """Return ``net`` as Nodes; a Parameter that several Blocks share belongs to the one that uses it first."""
    params_of: dict[Block, list[Parameter]] = {}

    def visit(block: Block) -> None:
        if block not in params_of:
            params_of[block] = list(block.params.values())
            for _, child in _mxnet.children(block):
                visit(child)

    visit(net)
    holders = Counter(param for params in params_of.values() for param in params)
    first: dict[Parameter, tuple[float, Block]] = {}
    for block, params in params_of.items():
        unshared = [param for param in params if holders[param] == 1]
        position = dataflow.position(unshared or params) if dataflow is not None else 0
        for param in params:
            if param not in first or position < first[param][0]:
                first[param] = (position, block)
    return _make_node(net, {param: block for param, (_, block) in first.items()}, set())


def _make_node(block: Block, owner: dict[Parameter, Block], seen: set[Block]) -> Node:
    seen.add(block)
    own = [param for param in block.params.values() if owner[param] is block]
    if isinstance(block, SymbolBlock):
        return _node_by_names(block, own)
    children = [_make_node(child, owner, seen) for _, child in _mxnet.children(block) if child not in seen]
    if not any(child.params for child in children):
        return Node(block, own)
    return Node(block, [], [*(Node(None, [param]) for param in own), *children])


def _node_by_names(block: SymbolBlock, params: Sequence[Parameter]) -> Node:
    """Return a SymbolBlock as the Blocks that it was made of, guessed from names such as net0_stage1_conv0_weight."""
    names: dict[str, Any] = {}
    for param in params:
        inner = names
        for word in _mxnet.layer_prefix(param).strip("_").split("_"):
            inner = inner.setdefault(word, {})
        inner.setdefault("", []).append(param)

    def nodes(inner: dict[str, Any]) -> list[Node]:
        found = []
        for word, value in inner.items():
            below = [Node(None, value)] if word == "" else nodes(value)
            found.append(below[0] if len(below) == 1 else Node(None, [], below))
        return found

    return Node(block, [], nodes(names))


def join_loose_parameters(nodes: Sequence[Node], dataflow: Dataflow) -> list[Node]:
    """Join the nodes of Parameters without a Block that are first used by the same operator; they come last."""
    loose: dict[float, list[Parameter]] = {}
    for node in nodes:
        if node.block is None and not node.children:
            loose.setdefault(dataflow.position(node.params), []).extend(node.params)
    joined = [Node(None, params) for params in loose.values()]
    return [node for node in nodes if node.block is not None or node.children] + joined
