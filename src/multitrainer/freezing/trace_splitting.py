"""Run the frozen beginning of a hybridized network as an operator of its own, without a backward pass."""

from __future__ import annotations

from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from mxnet import autograd
from mxnet.gluon import Block, Parameter
from mxnet.ndarray import CachedOp, NDArray
from mxnet.symbol import Symbol

from .. import _mxnet
from .graph_splitting import divide, read_backward, shield


def divide_traces(blocks: Iterable[Block]) -> None:
    """Let hybridized networks at and below ``blocks`` run what comes before their first trained layer by itself.

    Which layer that is, is looked up at every call that is recorded. The operators, their order and their modes are
    those of the whole trace, and so is every bit that comes out. `export` saves the whole.
    """
    for block in blocks:
        block.apply(_mxnet.replace_traces)


class Trace:
    """Stands in for the `CachedOp` of a trace.

    Parameters
    ----------
    whole : CachedOp
        What MXNet made of the trace.
    symbol : Symbol
        Its graph.
    sources : sequence of Parameter or None
        Where each input of the graph comes from; None is an input of the Block.
    flags : sequence of (str, value)
        What the Block was hybridized with.
    """

    def __init__(
        self,
        whole: CachedOp,
        symbol: Symbol,
        sources: Sequence[Parameter | None],
        flags: Sequence[tuple[str, Any]],
    ) -> None:
        self._whole = whole
        self._symbol = symbol
        self._names = symbol.list_inputs()
        self._sources = list(sources)
        self._params = {name for name, source in zip(self._names, sources) if source is not None}
        self._trainable = {n for n, p in zip(self._names, sources) if p is not None and not _mxnet.is_auxiliary(p)}
        self._flags = list(flags)
        # Each division has operators of its own: one whose inputs need a gradient at one call and not at the next
        # computes wrong gradients with static_shape=True.
        self._divisions: dict[tuple[bool, ...], _Parts] = {}
        self._undivided = len(set(self._names)) < len(self._names)

    def __call__(self, *arrays: NDArray) -> Any:
        """Run the trace, divided if that is possible, on the inputs of its graph."""
        if self._undivided or not autograd.is_recording():
            return self._whole(*arrays)
        needed = tuple(map(_needs_gradient, self._sources, arrays))
        if needed not in self._divisions:
            self._divisions[needed] = self._divided(needed)
        parts = self._divisions[needed]
        values = dict(zip(self._names, arrays))
        outputs: list[NDArray] = []
        if parts.first is not None:
            with autograd.pause(train_mode=autograd.is_training()):
                outputs = parts.first(values)
        if parts.rest is None:
            return outputs
        values.update(zip(parts.between, outputs))
        return parts.rest(values)

    def _register_op_hook(self, callback: Any, monitor_all: bool = False) -> None:
        """Show a monitor the whole trace, from now on."""
        self._undivided = True
        self._whole._register_op_hook(callback, monitor_all)

    def _divided(self, needed: Sequence[bool]) -> _Parts:
        if not any(needed):
            return _Parts(_Part(self._whole, self._names), [], None)
        trained = {name for name, need in zip(self._names, needed) if need}
        symbols = divide(self._symbol, trained)
        if symbols is not None and not self._params.isdisjoint(symbols[0].list_inputs()):
            first, between, rest = symbols
            if not self._unread(rest, trained):
                return _Parts(self._part(first), between, self._part(rest))
        unread = self._unread(self._symbol, trained)
        if trained >= self._trainable or not unread:
            return _Parts(None, [], _Part(self._whole, self._names))
        return _Parts(None, [], self._part(shield(self._symbol, unread)))

    def _unread(self, symbol: Symbol, trained: Collection[str]) -> set[str]:
        """Return the inputs that are neither Parameters nor known to be read by the backward pass."""
        return set(symbol.list_inputs()) - self._params - set(trained) - read_backward(symbol, trained)

    def _part(self, symbol: Symbol) -> _Part:
        inputs = symbol.list_inputs()
        return _Part(_mxnet.cached_op(symbol, [name in self._params for name in inputs], self._flags), inputs)


def _needs_gradient(source: Parameter | None, array: NDArray) -> bool:
    """Whether an input of a trace is a variable, or was computed from one."""
    if source is None:
        return _mxnet.is_recorded(array)
    return source.grad_req != "null" or _mxnet.has_gradient(array)  # the user may attach one to a frozen weight


class _Part:
    """A part of a trace, as an operator that takes its inputs by name."""

    def __init__(self, operator: CachedOp, inputs: Sequence[str]) -> None:
        self._operator = operator
        self._inputs = inputs

    def __call__(self, values: Mapping[str, NDArray]) -> list[NDArray]:
        outputs = self._operator(*(values[name] for name in self._inputs))
        return [outputs] if isinstance(outputs, NDArray) else outputs


class _Parts(NamedTuple):
    first: _Part | None  # what no input that needs a gradient enters; None if that is nothing
    between: list[str]  # what the outputs of the first part are called in the rest
    rest: _Part | None  # None if no input needs a gradient


_mxnet.replace_operators(Trace)
