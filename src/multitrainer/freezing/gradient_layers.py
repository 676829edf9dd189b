"""Find frozen Parameters on whose gradient no other gradient depends.

MKL-DNN's FullyConnected writes the gradient of a bias only if the gradient of the weight is requested
(mkldnn_fully_connected.cc); otherwise MXNet silently leaves garbage in it. So gradients are switched off for whole
layers only, and not for what may be the weight of a bias that trains.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Collection, Iterable, Iterator, NamedTuple, Sequence

from mxnet.gluon import Block, Parameter, SymbolBlock

from .. import _mxnet
from .state import is_frozen


class Layer(NamedTuple):
    """Parameters that one operator may take together."""

    params: tuple[Parameter, ...]
    is_mxnets: bool  # a layer of MXNet's own takes only its own Parameters; a user's layer may take any
    is_complete: bool = True  # whether no input of the operator may be computed from other Parameters


def layers_of(roots: Iterable[Block]) -> list[Layer]:
    """List the layers at and below some Blocks."""
    blocks: dict[Block, None] = {}
    for root in roots:
        root.apply(blocks.setdefault)
    layers: list[Layer] = []
    for block in blocks:
        params = _mxnet.held_parameters(block)
        if isinstance(block, SymbolBlock):
            layers += _symbol_layers(block, params)
        elif params:
            layers.append(Layer(tuple(params), type(block).__module__.startswith("mxnet.gluon.")))
    return layers


def without_dependents(layers: Sequence[Layer], elsewhere: Iterable[Parameter]) -> set[Parameter]:
    """Find the frozen Parameters of whole layers on whose gradient no other gradient depends.

    Parameters
    ----------
    layers : sequence of Layer
        All known layers.
    elsewhere : iterable of Parameter
        Parameters whose layer is unknown: each may be the bias of any weight of its size.
    """
    training = {param for layer in layers for param in layer.params if _trains(param)}
    partly_frozen = {
        param
        for layer in layers
        if not (layer.is_complete and training.isdisjoint(layer.params))
        for param in layer.params
    }
    # A user's layer can give FullyConnected a weight and a bias that are Parameters of two Blocks.
    of_users = {param for layer in layers if not layer.is_mxnets for param in layer.params}
    bias_sizes, user_bias_sizes = ({_size(param) for param in params} for params in (training, training & of_users))
    unknown_bias_sizes = {_size(param) for param in elsewhere if _trains(param)}
    frozen = {param for layer in layers for param in layer.params if is_frozen(param)} - partly_frozen
    weights = {param for param in frozen if _may_be_weight(param, user_bias_sizes)}
    weights |= {param for param in frozen if _has_units(param, unknown_bias_sizes)}
    weights |= {param for param in frozen & of_users if _has_units(param, bias_sizes)}
    return frozen - weights


def _symbol_layers(block: SymbolBlock, params: Sequence[Parameter]) -> Iterator[Layer]:
    """Yield the layers of an imported network: what each FullyConnected takes, and every Parameter by itself."""
    by_name = {param.name: param for param in params}
    nodes = json.loads(_mxnet.own_symbol(block).tojson())["nodes"]
    variables: list[frozenset[str]] = []  # the variables that each node is computed from
    for node in nodes:
        inputs = [variables[source[0]] for source in node["inputs"]]
        variables.append(frozenset([node["name"]]) if node["op"] == "null" else frozenset().union(*inputs))
        if node["op"] == "FullyConnected":
            names = frozenset().union(*inputs[1:])
            held = tuple(by_name[name] for name in sorted(names) if name in by_name)
            yield Layer(held, True, is_complete=len(held) == len(names))
    for param in params:
        yield Layer((param,), True)


def _may_be_weight(param: Parameter, bias_sizes: Collection[int | None]) -> bool:
    """Whether a user's layer can give ``param`` to FullyConnected beside a bias of one of these sizes (None: any size).

    The layer may transpose or reshape the weight, and put the bias together from several Parameters.
    """
    shape = _weight_shape(param)
    if not shape or not bias_sizes:
        return False
    units = {math.prod(axes) for count in range(1, len(shape) + 1) for axes in itertools.combinations(shape, count)}
    return any(size is None or any(n == size or (size > 1 and n % size == 0) for n in units) for size in bias_sizes)


def _has_units(param: Parameter, bias_sizes: Collection[int | None]) -> bool:
    """Whether ``param``, as a weight of FullyConnected, can have a bias of one of these sizes (None: any size)."""
    shape = _weight_shape(param)
    return bool(shape) and not {shape[0], None}.isdisjoint(bias_sizes)


def _weight_shape(param: Parameter) -> tuple[int, ...]:
    """Give the shape of what may be a weight of FullyConnected, with 0 for unknown sizes; () if it cannot be one."""
    shape = param.shape or _mxnet.shape(param) or (0, 0)
    return tuple(shape) if len(shape) in (2, 3) else ()


def _trains(param: Parameter) -> bool:
    return not (is_frozen(param) or param.grad_req == "null" or _mxnet.is_auxiliary(param))


def _size(param: Parameter) -> int | None:
    shape = _mxnet.shape(param)
    return None if shape is None else math.prod(shape)
