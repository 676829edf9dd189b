"""BatchNorm layers of frozen Blocks: they normalize with their running statistics, which stay as they are.

As in Keras, that holds for a BatchNorm none of whose own parameters trains. MXNet writes the choice into the trace of
every hybridized parent, so those traces are dropped.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any, Callable, Iterable, Iterator, Sequence

from mxnet.gluon import Block, Parameter

from . import _mxnet
from .gradients import is_frozen
from .targets import describe

# What a BatchNorm had before is kept on the object itself, where copies and pickles take it along.
_BEFORE = "_multitrainer_before"

_watches: weakref.WeakSet[_Watch] = weakref.WeakSet()


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


def warn_of_old_traces(params: Iterable[Parameter]) -> None:
    """Warn of every Block of ``params`` that was frozen or unfrozen inside a trace which goes on as before.

    A traced parent runs its graph and calls none of its children; so a Block that was not called since it was changed
    sits in a trace made before. To be called once a step.
    """
    watches = [watch for watch in list(_watches) if not watch.dismissed()]
    members = set(params) if watches else set()
    for watch in watches:
        if members.isdisjoint(watch.params) or watch.still_waiting():
            continue
        watch.stop()
        warn(
            f"{describe(watch.block)} was frozen or unfrozen and has not been called since. If the network around it "
            "was traced before that, it goes on with its BatchNorm layers as they were: call net.hybridize() on the "
            "network again, or name the whole network first: MultiLRTrainer([net, ...]), freeze(block, within=net)"
        )


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


def warn(message: str) -> None:
    """Warn, pointing at the line outside this package that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("multitrainer."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


class _Watch:
    """Tells whether a Block was called since."""

    def __init__(self, block: Block, pending: bool) -> None:
        previous = getattr(block, "_multitrainer_watch", None)
        if previous is not None:
            previous.stop()
        self.block = block
        self.params = frozenset(block.collect_params().values())
        self._called = False
        self._pending = pending
        self._handle = block.register_forward_pre_hook(self._note)
        block._multitrainer_watch = self  # lives as long as the Block, and no longer
        _watches.add(self)

    def _note(self, *_: Any) -> None:
        self._called = True

    def dismissed(self) -> bool:
        """Stop if the Block was called, which is all there is to know; return whether it was."""
        if self._called:
            self.stop()
        return self._called

    def still_waiting(self) -> bool:
        """Whether the step that asks belongs to a forward pass from before the change."""
        waiting, self._pending = self._pending, False
        return waiting

    def stop(self) -> None:
        self._handle.detach()
        _watches.discard(self)
        self.block._multitrainer_watch = None


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
        movable = [param for param in block.collect_params().values() if not _mxnet.is_auxiliary(param)]
        if movable:
            return all(param.lr_mult == 0 and is_frozen(param) for param in movable)
    return False
