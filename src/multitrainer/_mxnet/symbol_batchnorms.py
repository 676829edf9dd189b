"""BatchNorm operators inside the symbols of SymbolBlocks."""

from __future__ import annotations

import json
from typing import Iterator

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
        for node in self._nodes():
            node._set_attr(use_global_stats=str(value))

    def _nodes(self) -> Iterator[Symbol]:
        internals = self._block._cached_graph[1].get_internals()
        for index, output in enumerate(internals.list_outputs()):
            if output == f"{self._name}_output":
                yield internals[index]


def symbol_batchnorms(block: SymbolBlock) -> list[SymbolBatchNorm]:
    """Return the BatchNorm operators of ``block``, which are the same objects at every call.

    They are kept on the Block, so that copies and pickles of it have copies of them.
    """
    symbol = block._cached_graph[1]
    known, found = getattr(block, _FOUND, (None, []))
    if known is not symbol:
        found = [SymbolBatchNorm(block, name, params) for name, params in _batchnorms(block, symbol).items()]
        setattr(block, _FOUND, (symbol, found))
    return found


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
