"""The Blocks that a trainer knows: where layers, BatchNorms, traces and new Parameters are looked for."""

from __future__ import annotations

from typing import Any, Iterable

from mxnet.gluon import Block, Parameter

from .. import _mxnet


class KnownBlocks:
    """The outermost Blocks that a trainer knows, and what has changed in them since they were added.

    A copy of the trainer knows the Blocks that were copied before it in the same call of `copy.deepcopy`. It copies no
    Block by itself, and pickles hold none: a network that was hybridized and called cannot be copied, but its trainer
    can.

    Attributes
    ----------
    roots : list of Block
        The outermost Blocks.
    """

    def __init__(self) -> None:
        self.roots: list[Block] = []
        self._structure: _mxnet.Structure | None = None  # as it was when all its Parameters had a trainer
        self._params: set[Parameter] = set()

    def add(self, blocks: Iterable[Block]) -> None:
        """Add Blocks."""
        self.roots = _outermost([*self.roots, *blocks])
        self._structure = _mxnet.Structure(self.roots)
        self._params.update(self._structure.parameters())

    def unowned_parameters(self) -> list[Parameter]:
        """List Parameters that were added later, received a gradient and belong to no trainer.

        A layer that is assigned to a network after its trainer was built would otherwise never be trained, silently.
        """
        if self._structure is None:
            self.add(())
        assert self._structure is not None
        if not self._structure.changed():
            return []
        structure = _mxnet.Structure(self.roots)
        new = [
            param for param in structure.parameters() if param not in self._params and _mxnet.trainer_of(param) is None
        ]
        trainable = [param for param in new if not (param.grad_req == "null" or _mxnet.is_auxiliary(param))]
        if not trainable:
            self._structure = structure
        return [param for param in trainable if _mxnet.has_fresh_gradient(param)]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> KnownBlocks:
        copied = memo[id(self)] = type(self)()
        copied.roots = [memo[id(root)] for root in self.roots if id(root) in memo]  # they may not be complete yet
        return copied


def _outermost(blocks: Iterable[Block]) -> list[Block]:
    """Leave out the Blocks below other ones, and the slices of networks whose layers all are."""
    below: set[Block] = set()
    outermost = []
    for block in dict.fromkeys(blocks):
        children = [child for _, child in _mxnet.children(block)]
        if block in below or (children and below.issuperset(children)):
            continue
        outermost.append(block)
        block.apply(below.add)
    return outermost
