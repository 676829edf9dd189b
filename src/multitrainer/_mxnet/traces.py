"""The traces of hybridized Blocks."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Callable, Collection, Sequence

from mxnet.gluon import Block, HybridBlock, Parameter
from mxnet.ndarray import CachedOp
from mxnet.symbol import Symbol


def is_hybridized(block: Block) -> bool:
    """Whether the next call of ``block`` is traced, or runs a trace made before."""
    return isinstance(block, HybridBlock) and block._active


def forget_trace(block: Block) -> None:
    """Make the next call of a hybridized ``block`` trace it again."""
    if isinstance(block, HybridBlock):
        block._clear_cached_op()


# Whose operators keep hold of the arrays of gradients that they were first run with.
_static_blocks: weakref.WeakSet[HybridBlock] = weakref.WeakSet()


def _is_static(block: HybridBlock) -> bool:
    return bool(dict(block._flags).get("static_shape"))


def drop_static_operators(params: Collection[Parameter]) -> None:
    """Let networks with ``static_shape=True`` build the operators again that take some of ``params``.

    An operator goes on as it was when the gradients that are requested change, and writes wrong ones or none. The
    trace stays, for `export`.
    """
    for block in list(_static_blocks):
        if any(source in params for is_data, source in block._cached_op_args if not is_data):
            if block._backend is None:
                block._cached_op = None
            else:
                block._clear_cached_op()  # the backend divides the graph as it was traced


# On a Block, where copies and pickles take it along: that its operators are replaced.
_REPLACED = "_multitrainer_replaced"


def replace_traces(block: Block) -> None:
    """Run what `replace_operators` was given in the place of the operator of each trace of a hybridized ``block``."""
    if isinstance(block, HybridBlock):
        setattr(block, _REPLACED, True)
        if block._cached_op is not None:
            _replace_operator(block)


def _replace_operator(block: HybridBlock) -> None:
    if block._backend is None and isinstance(block._cached_op, CachedOp):  # a backend's graph is not to be divided
        sources = [None if is_data else source for is_data, source in block._cached_op_args]
        block._cached_op = _make(block._cached_op, block._cached_graph[1], sources, block._flags)


def _build_cache(block: HybridBlock, *args: Any) -> None:
    _stock_build_cache(block, *args)
    if _is_static(block):
        _static_blocks.add(block)
    if _REPLACED in vars(block):
        _replace_operator(block)


# A method of the class, and not of each Block: one on a Block would stay bound to it in its copies, and its pickles
# would need this package. It does what MXNet's does for every Block that is not marked.
_stock_build_cache = HybridBlock._build_cache


HybridBlock._build_cache = _build_cache


_static_blocks.update(found for found in gc.get_objects() if issubclass(type(found), HybridBlock) and _is_static(found))


_make: Callable[..., Any]


def replace_operators(make: Callable[..., Any]) -> None:
    """Give the operators of marked Blocks to ``make``; see `prefix.Trace`."""
    global _make
    _make = make


def cached_op(symbol: Symbol, is_parameter: Sequence[bool], flags: Sequence[tuple[str, Any]]) -> CachedOp:
    """Return ``symbol`` as an operator, hybridized with ``flags``; it has to know which inputs are Parameters."""
    indices = {kind: [i for i, each in enumerate(is_parameter) if each is kind] for kind in (False, True)}
    return CachedOp(symbol, [("data_indices", indices[False]), ("param_indices", indices[True]), *flags])


def traced_symbol(block: Block) -> Symbol | None:
    """Return the symbol that ``block`` runs and exports: that of a SymbolBlock, or of the trace made last."""
    graph = block._cached_graph if isinstance(block, HybridBlock) else ()
    return graph[1] if graph else None
