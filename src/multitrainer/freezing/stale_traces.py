"""Warn about traces that were made before a Block was frozen or unfrozen and that still run."""

from __future__ import annotations

import weakref
from typing import Any, Iterable

from mxnet.gluon import Block, Parameter

from ..groups.targets import describe
from .user_warning import warn

_watches: weakref.WeakSet[CallWatch] = weakref.WeakSet()
_ATTRIBUTE = "_multitrainer_watch"


def warn_of_old_traces(params: Iterable[Parameter]) -> None:
    """Warn about every Block of ``params`` that was frozen or unfrozen and has not been called since.

    A traced parent runs its graph and calls none of its children, so such a Block is part of an older trace. Call this
    once a step.
    """
    if not _watches:
        return
    watches, members = [watch for watch in list(_watches) if not watch.stop_if_called()], set(params)
    for watch in watches:
        if members.isdisjoint(watch.params) or watch.forward_was_earlier():
            continue
        watch.stop()
        warn(
            f"{describe(watch.block)} was frozen or unfrozen and has not been called since. If the network around it "
            "was traced before that, it goes on with its BatchNorm layers as they were: call net.hybridize() on the "
            "network again, or name the whole network first: MultiLRTrainer([net, ...]), freeze(block, within=net)"
        )


class CallWatch:
    """Notes whether a Block was called since the watch was made.

    Parameters
    ----------
    block : Block
        It has at most one watch.
    pending : bool
        Whether the next update belongs to a forward pass that was made before.
    """

    def __init__(self, block: Block, pending: bool) -> None:
        previous = getattr(block, _ATTRIBUTE, None)
        if previous is not None:
            previous.stop()
        self.block = block
        self.params = frozenset(block.collect_params().values())
        self._called = False
        self._pending = pending
        self._handle = block.register_forward_pre_hook(self._note_call)
        setattr(block, _ATTRIBUTE, self)  # lives as long as the Block, and no longer
        _watches.add(self)

    def _note_call(self, *_: Any) -> None:
        self._called = True

    def stop_if_called(self) -> bool:
        """Stop watching if the Block was called, and return whether it was."""
        if self._called:
            self.stop()
        return self._called

    def forward_was_earlier(self) -> bool:
        """Whether the update that asks belongs to a forward pass from before; true for one update at most."""
        pending, self._pending = self._pending, False
        return pending

    def stop(self) -> None:
        """Stop watching."""
        self._handle.detach()
        _watches.discard(self)
        setattr(self.block, _ATTRIBUTE, None)
