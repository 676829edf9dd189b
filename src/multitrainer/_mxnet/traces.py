"""Traces of hybridized Blocks: dropping them, rebuilding their operators, and running something in their place."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Callable, Collection, Sequence

from mxnet.gluon import Block, HybridBlock, Parameter
from mxnet.ndarray import CachedOp
from mxnet.symbol import Symbol


def is_hybridized(block: Block) -> bool:
    """Whether calls of ``block`` run its trace."""
    return isinstance(block, HybridBlock) and block._active


def forget_trace(block: Block) -> None:
    """Drop the trace of a hybridized ``block``; its next call traces it again."""
    if isinstance(block, HybridBlock):
        block._clear_cached_op()


# Blocks with ``static_shape=True``: their operators keep the gradient arrays of their first run.
_static_blocks: weakref.WeakSet[HybridBlock] = weakref.WeakSet()


def _is_static(block: HybridBlock) -> bool:
    return bool(dict(block._flags).get("static_shape"))


def drop_static_operators(params: Collection[Parameter]) -> None:
    """Have networks with ``static_shape=True`` rebuild their operators that take any of ``params``.

    An operator does not notice that other gradients are requested, and writes wrong ones or none. The trace stays for
    `export`.
    """
    for block in list(_static_blocks):
        if any(source in params for is_data, source in block._cached_op_args if not is_data):
            if block._backend is None:
                block._cached_op = None
            else:
                block._clear_cached_op()  # the backend partitions the graph when it is traced


# Marks a Block whose operators are replaced; an attribute, so that copies and pickles have it.
_REPLACED = "_multitrainer_replaced"


def mark_for_replacement(block: Block) -> None:
    """Replace the operator of each trace of a hybridized ``block``, with the function of `set_operator_factory`."""
    if isinstance(block, HybridBlock):
        setattr(block, _REPLACED, True)
        if block._cached_op is not None:
            _replace_operator(block)


def _replace_operator(block: HybridBlock) -> None:
    if block._backend is None and isinstance(block._cached_op, CachedOp):  # a backend's graph cannot be split
        sources = [None if is_data else source for is_data, source in block._cached_op_args]
        block._cached_op = _make_operator(block._cached_op, block._cached_graph[1], sources, block._flags)


def _build_cache(block: HybridBlock, *args: Any) -> None:
    _stock_build_cache(block, *args)
    if _is_static(block):
        _static_blocks.add(block)
    if _REPLACED in vars(block):
        _replace_operator(block)


# The method of the class is replaced and not that of single Blocks: copies of a Block would keep a method bound to the
# original, and pickles would need this package. For a Block that is not marked it does what MXNet's does.
_stock_build_cache = HybridBlock._build_cache
HybridBlock._build_cache = _build_cache

_static_blocks.update(found for found in gc.get_objects() if issubclass(type(found), HybridBlock) and _is_static(found))

_make_operator: Callable[..., Any]


def set_operator_factory(make_operator: Callable[..., Any]) -> None:
    """Have ``make_operator`` make the operators of all Blocks that `mark_for_replacement` marks.

    Parameters
    ----------
    make_operator : callable
        Called with MXNet's operator, the symbol, for each input its Parameter or None, and the flags of `hybridize`.
    """
    global _make_operator
    _make_operator = make_operator


def cached_op(symbol: Symbol, is_parameter: Sequence[bool], flags: Sequence[tuple[str, Any]]) -> CachedOp:
    """Compile ``symbol`` to an operator with the ``flags`` of `hybridize`, as `HybridBlock` does."""
    indices = {kind: [i for i, each in enumerate(is_parameter) if each is kind] for kind in (False, True)}
    return CachedOp(symbol, [("data_indices", indices[False]), ("param_indices", indices[True]), *flags])
