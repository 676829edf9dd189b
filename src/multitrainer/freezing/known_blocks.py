"""The Blocks that a trainer knows: where layers, BatchNorms, traces and new Parameters are looked for."""

from __future__ import annotations

from typing import Any, Collection, Iterable, Mapping, TypeVar

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from ..groups.names import attribute_paths


class KnownBlocks:
    """The outermost Blocks that a trainer knows, and which Parameters came to them or left them since.

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
        self._structure: _mxnet.Structure | None = None  # as of the last look
        self._held: dict[Parameter, None] = {}  # what the Blocks hold now
        self._seen: dict[Parameter, None] = {}  # what they hold or held
        self._newcomers: dict[Parameter, None] = {}  # came to a Block that was known already

    def add(self, blocks: Iterable[Block]) -> None:
        """Add Blocks, with the Parameters that they hold now."""
        self.refresh()  # what has come to a known Block since stays a newcomer
        blocks = list(blocks)
        self._seen = {**self._seen, **_mxnet.Structure(blocks).parameters()}
        self.roots = _outermost([*self.roots, *blocks])
        self._remember_structure()

    def unowned_parameters(self) -> list[Parameter]:
        """List Parameters that came to a known Block, would train, and belong to no trainer.

        A layer that is assigned to a network after its trainer was built would otherwise never be trained, silently.
        Parameters that had no trainer when their Block became known are not listed: the user left them out.
        """
        self.refresh()
        return [
            param
            for param in self._newcomers
            if param in self._held and _mxnet.trainer_of(param) is None and not _is_untrained(param)
        ]

    def departed(self, params: Iterable[Parameter]) -> list[Parameter]:
        """List those of ``params`` that left the known Blocks, up to the last `refresh` or `unowned_parameters`."""
        if len(self._held) == len(self._seen):
            return []
        return [param for param in params if param in self._seen and param not in self._held]

    def layers_of(self, params: Collection[Parameter]) -> list[str]:
        """List the attribute paths of the outermost Blocks inside the known ones that train ``params`` alone."""
        found: dict[Block, str] = {}
        inner: set[Block] = set()
        for block, path in attribute_paths(self.roots).items():
            trained = [param for param in _mxnet.Structure([block]).parameters() if not _is_untrained(param)]
            if trained and set(trained).issubset(params):
                found[block] = path
                for _, child in _mxnet.children(block):
                    child.apply(inner.add)
        return [path for block, path in found.items() if block not in inner]

    def forget_traces_of_newcomers(self, params: Iterable[Parameter]) -> None:
        """Drop the traces of the known Blocks around those of ``params`` that came later.

        MXNet drops the trace of the Block that gets a new layer, but not those of the Blocks around it.
        """
        self.refresh()
        newcomers = self._newcomers.keys() & params
        if newcomers:
            for root in self.roots:
                _forget_traces(root, newcomers)

    def refresh(self) -> None:
        """Look whether the Blocks hold other Parameters than at the last look."""
        if self._structure is None or self._structure.changed():
            self._remember_structure()

    def _remember_structure(self) -> None:
        structure = _mxnet.Structure(self.roots)
        held = structure.parameters()
        self._seen = self._seen or held  # in a copy of which some Blocks were left out
        self._newcomers = {**self._newcomers, **{param: None for param in held if param not in self._seen}}
        self._seen = {**self._seen, **held}
        self._held, self._structure = held, structure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> KnownBlocks:
        copied = memo[id(self)] = type(self)()
        copied.roots = _copied(self.roots, memo)  # they may not be complete yet
        if len(copied.roots) == len(self.roots):  # else what the others hold would seem to have left
            copied._seen = dict.fromkeys(_copied(self._seen, memo))
            copied._newcomers = dict.fromkeys(_copied(self._newcomers, memo))
        return copied


_Copied = TypeVar("_Copied")


def _copied(originals: Iterable[_Copied], memo: Mapping[int, Any]) -> list[_Copied]:
    """List the copies that were made already."""
    return [memo[id(original)] for original in originals if id(original) in memo]


def _is_untrained(param: Parameter) -> bool:
    return param.grad_req == "null" or _mxnet.is_auxiliary(param)


def _forget_traces(block: Block, params: Collection[Parameter]) -> bool:
    """Drop the traces of the Blocks at and below ``block`` that hold one of ``params``; tell whether any does."""
    below = [_forget_traces(child, params) for _, child in _mxnet.children(block)]
    holds = any(below) or not set(params).isdisjoint(_mxnet.held_parameters(block))
    if holds:
        _mxnet.forget_trace(block)
    return holds


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
