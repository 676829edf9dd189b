"""Import MXNet on any NumPy it can run on; the one place that touches MXNet's private attributes."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections import OrderedDict
from typing import Any, Iterable, Iterator

from mxnet import autograd
from mxnet.gluon import Block, Parameter, SymbolBlock
from mxnet.gluon.nn.basic_layers import _BatchNorm
from mxnet.name import NameManager
from mxnet.symbol import Symbol

BatchNorm = _BatchNorm  # the base of BatchNorm, BatchNormReLU, SyncBatchNorm and GluonCV's own


def mark_statistics(block: Block) -> None:
    """Note on the Parameters of SymbolBlocks below ``block`` which are statistics: MXNet's SymbolBlock does not."""
    if isinstance(block, SymbolBlock):
        names = set(block._cached_graph[1].list_auxiliary_states())
        for param in block.params.values():
            if param.name in names:
                param._differentiable = False
    for _, child in children(block):
        mark_statistics(child)


def children(block: Block) -> Iterator[tuple[str, Block]]:
    """Yield the direct children of ``block`` with the names they are registered under."""
    return iter(block._children.items())


def own_parameters(block: Block) -> dict[str, Parameter]:
    """Return the Parameters of ``block`` itself, without its children's, by attribute."""
    return dict(block._reg_params)


def held_parameters(block: Block) -> list[Parameter]:
    """Return the Parameters of ``block`` itself, those included that are not its attributes."""
    return list(dict.fromkeys([*block._reg_params.values(), *block.params.values()]))


class Structure:
    """The Blocks at and below some Blocks, and whether a child or a Parameter was replaced since.

    Parameters
    ----------
    roots : iterable of Block
        The outermost Blocks.
    """

    def __init__(self, roots: Iterable[Block]) -> None:
        blocks: dict[Block, None] = {}
        for root in roots:
            root.apply(blocks.setdefault)
        self._blocks = list(blocks)
        self._members = [members for block in blocks for members in (block._children, block._reg_params)]
        self._seen = self._now()

    def parameters(self) -> dict[Parameter, None]:
        """Return the Parameters that the Blocks hold, each once."""
        return dict.fromkeys(param for block in self._blocks for param in held_parameters(block))

    def _now(self) -> list[Any]:
        return list(itertools.chain.from_iterable(map(operator.methodcaller("values"), self._members)))

    def changed(self) -> bool:
        """Whether a Block or a Parameter was added, removed or replaced."""
        return self._now() != self._seen


def parameters_by_path(block: Block) -> dict[str, Parameter]:
    """Return all Parameters of ``block`` by attribute path, the names in a file of ``save_parameters``."""
    return block._collect_params_with_prefix()


def use_global_stats(layer: _BatchNorm) -> bool:
    """Whether ``layer`` normalizes with its running statistics, in training too."""
    return bool(layer._kwargs["use_global_stats"])


def set_use_global_stats(layer: _BatchNorm, value: bool) -> None:
    """Choose the statistics that ``layer`` normalizes with from its next trace on."""
    layer._kwargs["use_global_stats"] = value


@contextlib.contextmanager
def undisturbed(block: Block) -> Iterator[None]:
    """Let ``block`` be traced by a symbol with nothing to show for it: no hook runs, no Parameter keeps a variable."""
    blocks: dict[Block, None] = {}
    block.apply(lambda each: blocks.setdefault(each))
    hooks = [(each, each._forward_hooks, each._forward_pre_hooks) for each in blocks]
    variables = [(param, param._var) for each in blocks for param in each.params.values()]
    try:
        for each in blocks:
            each._forward_hooks, each._forward_pre_hooks = OrderedDict(), OrderedDict()
        with NameManager(), autograd.pause():
            yield
    finally:
        for each, after, before in hooks:
            each._forward_hooks, each._forward_pre_hooks = after, before
        for param, node in variables:
            param._var = node


def own_symbol(block: SymbolBlock) -> Symbol:
    """Return the symbol that a SymbolBlock runs."""
    return block._cached_graph[1]


def symbol_inputs(block: SymbolBlock) -> int:
    """Return how many inputs a SymbolBlock takes."""
    return len(block._cached_graph[0])
