"""BatchNorm operators inside the symbols of SymbolBlocks."""

from __future__ import annotations

import copy
import json
from typing import Iterator, NamedTuple

from mxnet.gluon import Parameter, SymbolBlock
from mxnet.symbol import Symbol

_OPERATORS = (
    "BatchNorm",
    "BatchNorm_v1",
    "_contrib_BatchNormWithReLU",
    "_contrib_SyncBatchNorm",
    "_npx_batch_norm",
)
_FOUND = "_multitrainer_batchnorms"


class SymbolBatchNorm:
    """A BatchNorm operator of a SymbolBlock, as far as it resembles a BatchNorm layer.

    Parameters
    ----------
    block : SymbolBlock
        The Block whose symbol has the operator.
    name : str
        The name of the operator.
    params : dict of str to Parameter
        The Parameters that it takes, statistics among them.
    """

    def __init__(self, block: SymbolBlock, name: str, params: dict[str, Parameter]) -> None:
        self._block = block
        self._name = name
        self.params = params

    def collect_params(self) -> dict[str, Parameter]:
        """Return the Parameters of the operator, as a Block does."""
        return self.params

    @property
    def use_global_stats(self) -> bool:
        """Whether it normalizes with its running statistics even in training."""
        return any(node.attr("use_global_stats") in ("True", "true", "1") for node in self._nodes())

    @use_global_stats.setter
    def use_global_stats(self, value: bool) -> None:
        _take_own_symbol(self._block)
        for node in self._nodes():
            node._set_attr(use_global_stats=str(value))

    def _nodes(self) -> Iterator[Symbol]:
        internals = self._block._cached_graph[1].get_internals()
        for index, output in enumerate(internals.list_outputs()):
            if output == f"{self._name}_output":
                yield internals[index]


class _Found(NamedTuple):
    """The operators that were found in a symbol, and whether the symbol is of one Block alone."""

    symbol: Symbol
    operators: list[SymbolBatchNorm]
    is_own: bool


def symbol_batchnorms(block: SymbolBlock) -> list[SymbolBatchNorm]:
    """Return the BatchNorm operators of ``block``, which are the same objects at every call.

    They are kept on the Block, so that copies and pickles of it have copies of them.
    """
    symbol = block._cached_graph[1]
    found = getattr(block, _FOUND, None)
    if found is None or found.symbol is not symbol:
        operators = [SymbolBatchNorm(block, name, params) for name, params in _batchnorms(block, symbol).items()]
        found = _Found(symbol, operators, is_own=False)
        setattr(block, _FOUND, found)
    return found.operators


def _take_own_symbol(block: SymbolBlock) -> None:
    """Let ``block`` run a copy of its symbol, which other Blocks may have been made of, too."""
    found = getattr(block, _FOUND)
    if not found.is_own:
        inputs, symbol = block._cached_graph
        own = copy.copy(symbol)
        block._cached_graph = inputs, own
        setattr(block, _FOUND, found._replace(symbol=own, is_own=True))


def _batchnorms(block: SymbolBlock, symbol: Symbol) -> dict[str, dict[str, Parameter]]:
    """Return the Parameters of each BatchNorm operator, by its name."""
    found: dict[str, dict[str, Parameter]] = {}
    nodes = json.loads(symbol.tojson())["nodes"]
    for node in nodes:
        if node["op"] in _OPERATORS:
            inputs = (nodes[place[0]]["name"] for place in node["inputs"][1:])  # the first one is normalized
            params = found.setdefault(node["name"], {})
            params.update({name: block.params[name] for name in inputs if name in block.params})
    return found
