"""What a network's graph says of its parameters: where each enters, and which came before it."""

from __future__ import annotations

import contextlib
import inspect
import json
from functools import partial
from typing import Any, Iterator, NamedTuple, Sequence

import mxnet as mx
from mxnet.gluon import Block, HybridBlock, Parameter, SymbolBlock
from mxnet.gluon.rnn import RecurrentCell
from mxnet.symbol import Symbol

from .. import _mxnet

_STOPS = ("BlockGrad", "stop_gradient")  # both names of the operator


class Use(NamedTuple):
    """The first use of a Parameter."""

    place: int  # of the operator, in an order in which none comes before what it reads
    before: int  # the Parameters whose outcome that operator reads, as a set of bits


class Flow(NamedTuple):
    """How the Parameters of a network follow one another."""

    uses: dict[Parameter, Use]  # without those that the forward pass does not reach
    bits: dict[Parameter, int]  # one for each Parameter

    def mask(self, params: Any) -> int:
        """Return ``params`` as a set of bits."""
        return sum(self.bits[param] for param in set(params))

    def before(self, params: Any) -> int:
        """Return all Parameters that come before one of ``params``, as a set of bits."""
        found = 0
        for param in params:
            found |= self.uses[param].before if param in self.uses else 0
        return found

    def place(self, params: Any) -> float:
        """Return the place of the first of ``params`` that is used."""
        return min((self.uses[param].place for param in params if param in self.uses), default=float("inf"))


def flows(net: Block) -> Iterator[Flow]:
    """Return how the Parameters of ``net`` follow one another; then the same with stopped gradients followed too.

    A network is run by a symbol, so nothing is computed and no shape need be known. What gradients cannot pass orders
    nothing at first: the regions that a detector proposes are no reason to put its proposal layers before its top.

    Parameters
    ----------
    net : Block
        A layer inside that no symbol can run is taken for one operator.

    Raises
    ------
    ValueError
        If a symbol cannot be sent through the network.
    """
    nodes = json.loads(_trace(net).tojson())["nodes"]
    params = {param.name: param for param in net.collect_params().values()}
    return (_read(nodes, params, stops) for stops in (_STOPS, ()))


def _read(nodes: list[dict[str, Any]], params: dict[str, Parameter], stops: tuple[str, ...]) -> Flow:
    by_bit = list(params.values())
    bits = {param: 1 << i for i, param in enumerate(by_bit)}
    uses: dict[Parameter, Use] = {}
    upstream: list[int] = []  # for each operator, the Parameters that its outcome depends on
    live: list[bool] = []  # whether it depends on the network's input
    for place, node in enumerate(nodes):
        sources = [source[0] for source in node["inputs"]]
        if node["op"] == "null":
            param = params.get(node["name"])
            upstream.append(0 if param is None else bits[param])
            live.append(param is None)
            continue
        data = parameters = 0
        for source in sources:
            if live[source]:
                data |= upstream[source]
            else:
                parameters |= upstream[source]
        live.append(any(live[source] for source in sources))
        if live[-1] and parameters:  # a weight may be reshaped or joined with others before it meets the data
            for param in _members(parameters, by_bit):
                uses.setdefault(param, Use(place, data))
        upstream.append(0 if node["op"] in stops else data | parameters)
    return Flow(uses, bits)


def _members(mask: int, by_bit: Sequence[Parameter]) -> Iterator[Parameter]:
    while mask:
        lowest = mask & -mask
        yield by_bit[lowest.bit_length() - 1]
        mask ^= lowest


def _trace(net: Block) -> Symbol:
    with _mxnet.without_side_effects(net):
        try:
            return mx.sym.Group(list(_symbols(_run(net))))
        except Exception as first:
            try:
                with _stand_ins(net):
                    return mx.sym.Group(list(_symbols(_run(net))))
            except Exception:
                raise ValueError(repr(first)) from first


def _run(net: Block) -> Any:
    def variable(name: str) -> Symbol:
        symbol = mx.sym.var(name)
        return symbol.as_np_ndarray() if mx.util.is_np_array() else symbol

    if isinstance(net, RecurrentCell):
        return net.unroll(1, [variable("data")])[0]
    return net(*(variable(f"data{i}") for i in range(_inputs(net))))


def _inputs(net: Block) -> int:
    """Return how many inputs ``net`` cannot do without."""
    if isinstance(net, SymbolBlock):
        return _mxnet.input_count(net)
    own = type(net).forward is HybridBlock.forward
    arguments = list(inspect.signature(net.hybrid_forward if own else net.forward).parameters.values())[own:]
    names = _mxnet.own_parameters(net)
    needed = [
        argument
        for argument in arguments
        if argument.kind in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD)
        and argument.default is argument.empty
        and argument.name not in names
    ]
    return max(1, len(needed))


@contextlib.contextmanager
def _stand_ins(net: Block) -> Iterator[None]:
    """Let each layer that no symbol can run be one operator on its inputs and its Parameters."""
    layers: list[Block] = []
    net.apply(lambda block: None if any(_mxnet.children(block)) else layers.append(block))
    own = [(layer, vars(layer)["forward"]) for layer in layers if "forward" in vars(layer)]
    try:
        for layer in dict.fromkeys(layers):
            layer.forward = partial(_forward, layer, layer.forward)
        yield
    finally:
        for layer in dict.fromkeys(layers):
            vars(layer).pop("forward", None)
        for layer, forward in own:
            layer.forward = forward


def _forward(layer: Block, forward: Any, *inputs: Any) -> Any:
    try:
        return forward(*inputs)
    except Exception:
        return mx.sym.add_n(*_symbols(inputs), *(param.var() for param in layer.params.values()))


def _symbols(value: Any) -> Iterator[Symbol]:
    """Yield the symbols in what a Block takes or returns."""
    if isinstance(value, Symbol):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _symbols(item)
