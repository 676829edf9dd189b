"""The frozen beginning of a hybridized network, run as an operator of its own.

MXNet runs a trace as one `CachedOp`, which keeps what the gradient of each of its inputs would need, wanted or not
(its constructor in src/imperative/cached_op.cc counts the uses in the whole backward graph). So frozen layers hold as
much memory as trained ones. Here a trace is divided at the first operator that a trained Parameter enters. What comes
before it runs without being recorded, and keeps nothing.
"""

from __future__ import annotations

import json
from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import Block, Parameter
from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol

from . import _mxnet


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
        whole: _mxnet.CachedOp,
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

    def __init__(self, operator: _mxnet.CachedOp, inputs: Sequence[str]) -> None:
        self._operator = operator
        self._inputs = inputs

    def __call__(self, values: Mapping[str, NDArray]) -> list[NDArray]:
        outputs = self._operator(*(values[name] for name in self._inputs))
        return [outputs] if isinstance(outputs, NDArray) else outputs


class _Parts(NamedTuple):
    first: _Part | None  # what no input that needs a gradient enters; None if that is nothing
    between: list[str]  # what the outputs of the first part are called in the rest
    rest: _Part | None  # None if no input needs a gradient


def divide(symbol: Symbol, trained: Collection[str]) -> tuple[Symbol, list[str], Symbol] | None:
    """Divide a graph at the first operator that one of the ``trained`` variables enters.

    Parameters
    ----------
    symbol : Symbol
        The graph.
    trained : collection of str
        Names of variables.

    Returns
    -------
    tuple of Symbol, list of str, Symbol, or None
        What runs before that operator, with all outputs that are needed later; what these are called in the rest; and
        the rest. Both run their operators in the order in which the whole runs them, so that random numbers are drawn
        in that order too. None if nothing runs before, if no operator is reached, or if the order cannot be kept.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer.prefix import divide
    >>> hidden = mx.sym.FullyConnected(mx.sym.var('data'), name='hidden', num_hidden=2)
    >>> output = mx.sym.FullyConnected(mx.sym.relu(hidden), name='output', num_hidden=2)
    >>> first, between, rest = divide(output, {'output_weight', 'output_bias'})
    >>> first.list_inputs(), between, rest.list_inputs()
    (['data', 'hidden_weight', 'hidden_bias'], ['frozen output 0'], ['frozen output 0', 'output_weight', 'output_bias'])
    """
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    trains = [node["op"] == "null" and node["name"] in trained for node in nodes]
    stop = next((i for i, node in enumerate(nodes) if any(trains[source[0]] for source in node["inputs"])), 0)
    entries = [*(source for node in nodes[stop:] for source in node["inputs"]), *graph["heads"]]
    needed = sorted({(node, output) for node, output, *_ in entries if node < stop and nodes[node]["op"] != "null"})
    # A graph runs in the order of a depth-first walk from its heads, so that order depends on theirs.
    cut = next((each for each in (needed, needed[::-1]) if _runs_in_order(nodes, each)), [])
    if not cut:
        return None
    names = [f"frozen output {i}" for i in range(len(cut))]
    place = {entry: len(nodes) + i for i, entry in enumerate(cut)}

    def moved(entry: Sequence[int]) -> Sequence[int]:
        node, output, *_ = entry
        return [place[node, output], 0, 0] if (node, output) in place else entry

    rest = [{**node, "inputs": [moved(source) for source in node["inputs"]]} for node in nodes]
    rest += [{"op": "null", "name": name, "inputs": []} for name in names]
    if not _runs_in_order(rest, list(map(moved, graph["heads"]))):
        return None
    heads = []
    for head in map(moved, graph["heads"]):
        if head[0] >= len(nodes):  # an output of the network: of an operator, not a variable, for gradients to start at
            rest.append({"op": "_copy", "name": f"copy of {names[head[0] - len(nodes)]}", "inputs": [head]})
            head = [len(rest) - 1, 0, 0]
        heads.append(head)
    return _graph(symbol, graph, nodes, [[*entry, 0] for entry in cut]), names, _graph(symbol, graph, rest, heads)


# The backward passes of these operators read their first input.
_READ_FIRST = (
    *("BatchNorm", "Convolution", "Deconvolution", "Embedding", "FullyConnected", "GroupNorm", "InstanceNorm"),
    *("LayerNorm", "RNN"),
)


def read_backward(symbol: Symbol, trained: Collection[str]) -> set[str]:
    """Return the inputs of a graph that its backward pass is known to read.

    MXNet 1.9.1 computes wrong gradients with ``static_alloc=True``, or raises in the backward pass, if an input that is
    no Parameter and needs no gradient enters sums alone: of ``w`` in ``x + w``, for one.

    Parameters
    ----------
    symbol : Symbol
        The graph.
    trained : collection of str
        Its inputs that need a gradient.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer.prefix import read_backward
    >>> x, w = mx.sym.var('x'), mx.sym.var('w')
    >>> read_backward(x + w, {'w'})
    set()
    >>> read_backward(mx.sym.FullyConnected(x, w, no_bias=True, num_hidden=2), {'w'})
    {'x'}
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    needs: list[bool] = []
    read = set()
    for node in nodes:
        needs.append(node["name"] in trained if node["op"] == "null" else any(needs[i] for i, *_ in node["inputs"]))
        if needs[-1] and node["op"] in _READ_FIRST:
            first = nodes[node["inputs"][0][0]]
            read.update([first["name"]] if first["op"] == "null" else [])
    return read


def shield(symbol: Symbol, inputs: Collection[str]) -> Symbol:
    """Put a BlockGrad behind some inputs of a graph, whose outputs may enter sums alone; see `read_backward`.

    Parameters
    ----------
    symbol : Symbol
        The graph.
    inputs : collection of str
        Names of inputs that need no gradient.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer.prefix import shield
    >>> shield(mx.sym.var('x') + mx.sym.var('w'), {'x'}).get_internals().list_outputs()[1:3]
    ['shield of x_output', 'w']
    """
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    named = [i for i, node in enumerate(nodes) if node["op"] == "null" and node["name"] in inputs]
    shields = {i: len(nodes) + k for k, i in enumerate(named)}
    behind = [{**node, "inputs": [[shields.get(j, j), *rest] for j, *rest in node["inputs"]]} for node in nodes]
    behind += [{"op": "BlockGrad", "name": f"shield of {nodes[i]['name']}", "inputs": [[i, 0, 0]]} for i in named]
    return _graph(symbol, graph, behind, graph["heads"])


def _runs_in_order(nodes: Sequence[dict[str, Any]], heads: Sequence[Sequence[int]]) -> bool:
    """Whether a graph with these heads runs its operators in the order of ``nodes`` (DFSVisit in nnvm's graph.h)."""
    order: list[int] = []
    seen: set[int] = set()
    stack = [head[0] for head in reversed(heads)]
    while stack:
        node = stack.pop()
        if node < 0:  # all that comes before it was visited
            order.append(~node)
        elif node not in seen:
            seen.add(node)
            stack.append(~node)
            stack.extend(source[0] for source in reversed(nodes[node]["inputs"]))
    operators = [node for node in order if nodes[node]["op"] != "null"]
    return operators == sorted(operators)


def _graph(symbol: Symbol, graph: dict[str, Any], nodes: list[dict[str, Any]], heads: list[Sequence[int]]) -> Symbol:
    """Return a graph of the same kind as ``symbol`` with other nodes, of which only those below ``heads`` matter."""
    variables = [i for i, node in enumerate(nodes) if node["op"] == "null"]
    text = json.dumps({"nodes": nodes, "arg_nodes": variables, "heads": heads, "attrs": graph["attrs"]})
    loaded = mx.sym.load_json(text)
    return loaded if type(symbol) is Symbol else loaded.as_np_ndarray()


_mxnet.replace_operators(Trace)
