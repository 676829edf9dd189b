"""Symbols: those that Blocks run, and the variables in them that stand for Parameters."""

from __future__ import annotations

from mxnet.gluon import Block, HybridBlock, Parameter, SymbolBlock
from mxnet.symbol import Symbol


def own_symbol(block: SymbolBlock) -> Symbol:
    """Return the symbol that a SymbolBlock runs."""
    return block._cached_graph[1]


def traced_symbol(block: Block) -> Symbol | None:
    """Return the symbol that ``block`` runs and exports: a SymbolBlock's own, or that of the last trace."""
    graph = block._cached_graph if isinstance(block, HybridBlock) else ()
    return graph[1] if graph else None


def input_count(block: SymbolBlock) -> int:
    """Return how many inputs a SymbolBlock takes."""
    return len(block._cached_graph[0])


def variable(param: Parameter) -> Symbol | None:
    """Return the variable that stands for ``param`` in traces, or None if it has not been traced."""
    return param._var


def set_variable(param: Parameter, node: Symbol) -> None:
    """Make ``node`` the variable that stands for ``param`` in traces."""
    param._var = node


def write_multipliers(node: Symbol, param: Parameter) -> None:
    """Write the multipliers of ``param`` to the attributes of a variable, which all symbols that hold it share."""
    node._set_attr(__lr_mult__=str(param.lr_mult), __wd_mult__=str(param.wd_mult))
