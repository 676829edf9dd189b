"""Read from a network's graph where each parameter is used first, and which parameters come before it."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from functools import partial
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import mxnet as mx
from mxnet.gluon import Block, HybridBlock, Parameter, SymbolBlock
from mxnet.gluon.rnn import RecurrentCell
from mxnet.symbol import Symbol

from .. import _mxnet

_GRADIENT_STOPS = ("BlockGrad", "stop_gradient")  # both names of the operator


class FirstUse(NamedTuple):
    """The first operator in which a Parameter meets data that depends on the network's input."""

    position: int  # of the operator in a topological order of the graph
    upstream: int  # bit mask of the Parameters that the data depends on


class Dataflow(NamedTuple):
    """In which order data passes the Parameters of a network."""

    first_uses: dict[Parameter, FirstUse]  # without those that the forward pass does not reach
    bits: dict[Parameter, int]  # one for each Parameter

    def mask(self, params: Iterable[Parameter]) -> int:
        """Return ``params`` as a bit mask."""
        return sum(self.bits[param] for param in set(params))

    def upstream(self, params: Iterable[Parameter]) -> int:
        """Return the Parameters that come before any of ``params``, as a bit mask."""
        found = 0
        for param in params:
            found |= self.first_uses[param].upstream if param in self.first_uses else 0
        return found

    def position(self, params: Iterable[Parameter]) -> float:
        """Return the position of the first use of any of ``params``, or infinity if none is used."""
        return min((self.first_uses[param].position for param in params if param in self.first_uses), default=math.inf)


def dataflows(net: Block) -> Iterator[Dataflow]:
    """Yield the dataflow of a network with gradient stops taken for its ends, then the whole dataflow.

    A symbol is sent through the network, so nothing is computed and no shape has to be known. The first dataflow fits
    most networks: the proposals of a detector pass a gradient stop, and do not put its proposal layers before its top.

    Parameters
    ----------
    net : Block
        A layer inside that fails with a symbol is treated as one operator.

    Raises
    ------
    ValueError
        If the network fails with a symbol.
    """
    nodes = json.loads(_trace(net).tojson())["nodes"]
    params = {param.name: param for param in net.collect_params().values()}
    return (_read_graph(nodes, params, stops) for stops in (_GRADIENT_STOPS, ()))


def _read_graph(nodes: list[dict[str, Any]], params: dict[str, Parameter], stops: tuple[str, ...]) -> Dataflow:
    ordered = list(params.values())
    bits = {param: 1 << i for i, param in enumerate(ordered)}
    first_uses: dict[Parameter, FirstUse] = {}
    upstream: list[int] = []  # for each operator, the Parameters that its outcome depends on
    from_input: list[bool] = []  # for each operator, whether its outcome depends on the network's input
    for position, node in enumerate(nodes):
        if node["op"] == "null":
            param = params.get(node["name"])
            upstream.append(0 if param is None else bits[param])
            from_input.append(param is None)
            continue
        data = parameters = 0
        sources = [source[0] for source in node["inputs"]]
        for source in sources:
            if from_input[source]:
                data |= upstream[source]
            else:
                parameters |= upstream[source]
        from_input.append(any(from_input[source] for source in sources))
        if from_input[-1]:  # a weight may be reshaped or joined with others before it meets the data
            for param in _unmask(parameters, ordered):
                first_uses.setdefault(param, FirstUse(position, data))
        upstream.append(0 if node["op"] in stops else data | parameters)
    return Dataflow(first_uses, bits)


def _unmask(mask: int, ordered: Sequence[Parameter]) -> Iterator[Parameter]:
    while mask:
        lowest = mask & -mask
        yield ordered[lowest.bit_length() - 1]
        mask ^= lowest


def _trace(net: Block) -> Symbol:
    """Return the graph of a network, in which a layer that fails with a symbol is replaced by one operator."""
    with _mxnet.without_side_effects(net):
        try:
            return mx.sym.Group(list(_symbols(_run(net))))
        except Exception as first:
            try:
                with _replaced_layers(net):
                    return mx.sym.Group(list(_symbols(_run(net))))
            except Exception:
                raise ValueError(repr(first)) from first


def _run(net: Block) -> Any:
    """Call a network on symbols."""

    def variable(name: str) -> Symbol:
        symbol = mx.sym.var(name)
        return symbol.as_np_ndarray() if mx.util.is_np_array() else symbol

    if isinstance(net, RecurrentCell):
        return net.unroll(1, [variable("data")])[0]
    return net(*(variable(f"data{i}") for i in range(_count_inputs(net))))


def _count_inputs(net: Block) -> int:
    """Return the number of inputs that ``net`` requires."""
    if isinstance(net, SymbolBlock):
        return _mxnet.input_count(net)
    is_hybrid = type(net).forward is HybridBlock.forward
    arguments = list(inspect.signature(net.hybrid_forward if is_hybrid else net.forward).parameters.values())
    parameters = _mxnet.own_parameters(net)
    required = [
        argument
        for argument in arguments[is_hybrid:]  # the first one of hybrid_forward is the module of operators
        if argument.kind in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD)
        and argument.default is argument.empty
        and argument.name not in parameters
    ]
    return max(1, len(required))


@contextlib.contextmanager
def _replaced_layers(net: Block) -> Iterator[None]:
    """Let each layer that fails with a symbol return one operator on its inputs and its Parameters instead."""
    layers: dict[Block, Any] = {}  # layer -> the forward that was set on the object itself, or None
    net.apply(
        lambda block: None if any(_mxnet.children(block)) else layers.setdefault(block, vars(block).get("forward"))
    )
    try:
        for layer in layers:
            layer.forward = partial(_forward_or_operator, layer, layer.forward)
        yield
    finally:
        for layer, own in layers.items():
            vars(layer).pop("forward", None)
            if own is not None:
                layer.forward = own


def _forward_or_operator(layer: Block, forward: Any, *inputs: Any) -> Any:
    try:
        return forward(*inputs)
    except Exception:
        return mx.sym.add_n(*_symbols(inputs), *(param.var() for param in layer.params.values()))


def _symbols(value: Any) -> Iterator[Symbol]:
    """Yield the symbols in an input or output of a Block."""
    if isinstance(value, Symbol):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _symbols(item)
