"""Blocks: their children, their Parameters, BatchNorm's statistics, and tracing without side effects."""

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

from .symbol_batchnorms import SymbolBatchNorm

BatchNorm = _BatchNorm  # the base class of BatchNorm, BatchNormReLU, SyncBatchNorm and those of GluonCV


def mark_statistics(block: Block) -> None:
    """Mark the statistics among the Parameters of SymbolBlocks at or below ``block``, which MXNet leaves unmarked."""
    if isinstance(block, SymbolBlock):
        names = set(block._cached_graph[1].list_auxiliary_states())
        for param in block.params.values():
            if param.name in names:
                param._differentiable = False
    for _, child in children(block):
        mark_statistics(child)


def children(block: Block) -> Iterator[tuple[str, Block]]:
    """Yield the direct children of ``block`` with the names under which they are registered."""
    return iter(block._children.items())


def own_parameters(block: Block) -> dict[str, Parameter]:
    """Return the Parameters that are attributes of ``block`` itself, by attribute name."""
    return dict(block._reg_params)


def held_parameters(block: Block) -> list[Parameter]:
    """Return the Parameters of ``block`` itself, whether or not they are its attributes."""
    return list(dict.fromkeys([*block._reg_params.values(), *block.params.values()]))


class Structure:
    """Remembers the Blocks at and below some Blocks, and tells whether their children or Parameters have changed.

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
        self._remembered = self._current()

    def parameters(self) -> dict[Parameter, None]:
        """Return the Parameters of the Blocks, each once."""
        return dict.fromkeys(param for block in self._blocks for param in held_parameters(block))

    def _current(self) -> list[Any]:
        return list(itertools.chain.from_iterable(map(operator.methodcaller("values"), self._members)))

    def changed(self) -> bool:
        """Whether a Block or a Parameter was added, removed or replaced since the creation of this object."""
        return self._current() != self._remembered


def parameters_by_path(block: Block) -> dict[str, Parameter]:
    """Return all Parameters of ``block`` by attribute path, as ``save_parameters`` names them."""
    return block._collect_params_with_prefix()


def use_global_stats(layer: _BatchNorm | SymbolBatchNorm) -> bool:
    """Whether ``layer`` normalizes with its running statistics even in training."""
    if isinstance(layer, SymbolBatchNorm):
        return layer.use_global_stats
    return bool(layer._kwargs["use_global_stats"])


def set_use_global_stats(layer: _BatchNorm | SymbolBatchNorm, value: bool) -> None:
    """Choose whether ``layer`` normalizes with its running statistics, from its next trace on."""
    if isinstance(layer, SymbolBatchNorm):
        layer.use_global_stats = value
    else:
        layer._kwargs["use_global_stats"] = value


@contextlib.contextmanager
def without_side_effects(block: Block) -> Iterator[None]:
    """Let a call of ``block`` with a symbol leave no trace: hooks do not run, and Parameters keep their variables."""
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
