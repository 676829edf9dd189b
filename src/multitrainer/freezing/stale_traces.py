"""Warn of traces that were made before a Block was frozen or unfrozen, and that still run."""

from __future__ import annotations

import weakref
from typing import Any, Iterable

from mxnet.gluon import Block, Parameter

from ..groups.targets import describe
from .user_warning import warn

_watches: weakref.WeakSet[_Watch] = weakref.WeakSet()


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
