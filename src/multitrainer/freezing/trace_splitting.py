"""Run the frozen beginning of a hybridized network as an operator of its own, without a backward pass.

MXNet runs a trace as one `CachedOp`, which keeps what the gradient of each of its inputs would need, requested or not
(its constructor in src/imperative/cached_op.cc counts the uses in the whole backward graph). So frozen layers hold as
much memory as trained ones. Here a trace is divided before the first operator that takes a trained Parameter. The
operators before it run unrecorded and keep nothing.
"""

from __future__ import annotations

from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from mxnet import autograd
from mxnet.gluon import Block, Parameter
from mxnet.ndarray import CachedOp, NDArray
from mxnet.symbol import Symbol

from .. import _mxnet
from .graph_splitting import divide, read_backward, shield


def divide_traces(blocks: Iterable[Block]) -> None:
    """Let hybridized networks at and below ``blocks`` run the layers before their first trained one separately.

    The first trained layer is looked up at every recorded call. The operators, their order and their modes are those of
    the whole trace, and so is every bit of the result. `export` saves the whole trace.
    """
    for block in blocks:
        block.apply(_mxnet.mark_for_replacement)


class Trace:
    """Stands in for the `CachedOp` of a trace.

    Parameters
    ----------
    whole : CachedOp
        The operator that MXNet made of the trace.
    symbol : Symbol
        Its graph.
    sources : sequence of Parameter or None
        The Parameter that each input of the graph is; None for an input of the Block.
    flags : sequence of (str, value)
        The options that the Block was hybridized with.
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
        # Each division has operators of its own: with static_shape=True, an operator whose inputs need a gradient at
        # one call and not at the next computes wrong gradients.
        self._divisions: dict[tuple[bool, ...], _Division] = {}
        self._runs_whole = len(set(self._names)) < len(self._names)

    def __call__(self, *arrays: NDArray) -> Any:
        """Run the trace on the inputs of its graph, divided if possible."""
        if self._runs_whole or not autograd.is_recording():
            return self._whole(*arrays)
        needs_gradient = tuple(map(_needs_gradient, self._sources, arrays))
        if needs_gradient not in self._divisions:
            self._divisions[needs_gradient] = self._divide(needs_gradient)
        division = self._divisions[needs_gradient]
        values = dict(zip(self._names, arrays))
        outputs: list[NDArray] = []
        if division.first is not None:
            with autograd.pause(train_mode=autograd.is_training()):
                outputs = division.first(values)
        if division.rest is None:
            return outputs
        values.update(zip(division.between, outputs))
        return division.rest(values)

    def _register_op_hook(self, callback: Any, monitor_all: bool = False) -> None:
        """Let a monitor see the trace; from now on it runs undivided."""
        self._runs_whole = True
        self._whole._register_op_hook(callback, monitor_all)

    def _divide(self, needs_gradient: Sequence[bool]) -> _Division:
        if not any(needs_gradient):
            return _Division(_TracePart(self._whole, self._names), [], None)
        trained = {name for name, need in zip(self._names, needs_gradient) if need}
        symbols = divide(self._symbol, trained)
        if symbols is not None and not self._params.isdisjoint(symbols[0].list_inputs()):
            first, between, rest = symbols
            if not self._inputs_not_read(rest, trained):
                return _Division(self._part(first), between, self._part(rest))
        unread = self._inputs_not_read(self._symbol, trained)
        if trained >= self._trainable or not unread:
            return _Division(None, [], _TracePart(self._whole, self._names))
        return _Division(None, [], self._part(shield(self._symbol, unread)))

    def _inputs_not_read(self, symbol: Symbol, trained: Collection[str]) -> set[str]:
        """Find the inputs that are not Parameters and that the backward pass is not known to read."""
        return set(symbol.list_inputs()) - self._params - set(trained) - read_backward(symbol, trained)

    def _part(self, symbol: Symbol) -> _TracePart:
        inputs = symbol.list_inputs()
        return _TracePart(_mxnet.cached_op(symbol, [name in self._params for name in inputs], self._flags), inputs)


def _needs_gradient(source: Parameter | None, array: NDArray) -> bool:
    """Whether an input of a trace is a variable, or was computed from one."""
    if source is None:
        return _mxnet.is_recorded(array)
    return source.grad_req != "null" or _mxnet.has_gradient(array)  # users may attach one to a frozen weight


class _TracePart:
    """A part of a trace: an operator that takes its inputs by name."""

    def __init__(self, operator: CachedOp, inputs: Sequence[str]) -> None:
        self._operator = operator
        self._inputs = inputs

    def __call__(self, values: Mapping[str, NDArray]) -> list[NDArray]:
        outputs = self._operator(*(values[name] for name in self._inputs))
        return [outputs] if isinstance(outputs, NDArray) else outputs


class _Division(NamedTuple):
    """The two parts of a trace."""

    first: _TracePart | None  # the operators that need no gradient, if any come first
    between: list[str]  # the names that the rest gives to the outputs of the first part
    rest: _TracePart | None  # None if no input needs a gradient


_mxnet.set_operator_factory(Trace)
