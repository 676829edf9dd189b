"""BatchNorm layers of frozen Blocks: they normalize with their running statistics, which stay as they are.

As in Keras, that holds for a BatchNorm none of whose own parameters trains. MXNet writes the choice into the trace of
every hybridized parent, so those traces are dropped.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Sequence

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from .stale_traces import _Watch
from .state import is_frozen
from .user_warning import warn

# What a BatchNorm had before is kept on the object itself, where copies and pickles take it along.
_BEFORE = "_multitrainer_before"


def hold_statistics(roots: Sequence[Block], pending: Callable[[], bool]) -> set[Parameter]:
    """Put every BatchNorm below ``roots`` on the statistics that its parameters call for; forget traces that differ.

    Parameters
    ----------
    roots : sequence of Block
        The Blocks that are known, a network or parts of it.
    pending : callable () -> bool
        Whether a step is due for a forward pass that has already run; asked only where a BatchNorm is switched.

    Returns
    -------
    set of Parameter
        All parameters of the BatchNorms that were found.
    """
    found: dict[_mxnet.BatchNorm, list[tuple[Block, ...]]] = {}
    for root in roots:
        for layer, path in _batchnorms(root, ()):
            found.setdefault(layer, []).append(path)
    wanted = {layer: any(map(_is_frozen, paths)) for layer, paths in found.items()}
    turned = {layer: frozen for layer, frozen in wanted.items() if frozen != hasattr(layer, _BEFORE)}
    stale = {
        block
        for layer, frozen in turned.items()
        if _mxnet.use_global_stats(layer) != (frozen or getattr(layer, _BEFORE))
        for path in found[layer]
        for block in path
    }
    # First the traces: if this is interrupted, the next call finds the same layers to switch.
    for block in stale:
        _mxnet.forget_trace(block)
    for layer, frozen in turned.items():
        _switch(layer, frozen)
    inner = {block for paths in found.values() for path in paths for block in path[1:]}
    outermost = [path for layer, paths in found.items() if layer in stale for path in paths if path[0] not in inner]
    # A slice of a network is a Block that nobody calls: the first on the way that can be traced is what to watch.
    watched = {next((block for block in path if _mxnet.is_hybridized(block)), None) for path in outermost}
    for block in watched - {None}:
        _Watch(block, pending())
    return {param for layer in found for param in layer.params.values()}


def warn_of_statistics(frozen: Iterable[Parameter], members: Iterable[Parameter], covered: Iterable[Parameter]) -> None:
    """Warn of statistics among ``members`` that belong to ``frozen`` Parameters and to no BatchNorm that was found."""
    stems = {_mxnet.stem(param) for param in frozen}
    if not stems:
        return
    covered = set(covered)
    moving = [
        param.name
        for param in members
        if _mxnet.stem(param) in stems and _mxnet.is_statistic(param) and param not in covered
    ]
    if moving:
        warn(
            f"frozen, but their BatchNorm statistics still move: {', '.join(moving[:3])}"
            f"{', ...' if len(moving) > 3 else ''}. Name the Block that holds the layers instead of its Parameters, as "
            "in MultiLRTrainer([net, ...]) or freeze(block); inside a SymbolBlock they cannot be held"
        )


def _batchnorms(block: Block, path: tuple[Block, ...]) -> Iterator[tuple[Any, tuple[Block, ...]]]:
    """Yield each BatchNorm below ``block`` with the Blocks that lead to it, itself the last."""
    path = (*path, block)
    if isinstance(block, _mxnet.BatchNorm):
        yield block, path
    for _, child in _mxnet.children(block):
        yield from _batchnorms(child, path)


def _switch(layer: Any, frozen: bool) -> None:
    """Put one BatchNorm on its running statistics, or on those that it used before."""
    if frozen:
        setattr(layer, _BEFORE, _mxnet.use_global_stats(layer))
        _mxnet.set_use_global_stats(layer, True)
    else:
        _mxnet.set_use_global_stats(layer, getattr(layer, _BEFORE))
        delattr(layer, _BEFORE)


def _is_frozen(path: Sequence[Block]) -> bool:
    """Whether the innermost Block of ``path`` with parameters that could train has none that does."""
    for block in reversed(path):
        trainable = [param for param in block.collect_params().values() if not _mxnet.is_auxiliary(param)]
        if trainable:
            return all(param.lr_mult == 0 and is_frozen(param) for param in trainable)
    return False
