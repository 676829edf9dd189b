"""Which frozen Parameters can do without a gradient, so that no other gradient comes out wrong for it.

That a layer is frozen means that its update is left out. Its gradient is switched off (``grad_req='null'``) to save the
time and memory of its backward pass, and only for whole layers: MKL-DNN's FullyConnected writes the gradient of a bias
only if that of the weight is requested (mkldnn_fully_connected.cc), and MXNet does not say so.
"""

from __future__ import annotations

import itertools
import json
import math
import weakref
from typing import Collection, Iterable, Iterator, Mapping, NamedTuple, Sequence

from mxnet.gluon import Block, Parameter, SymbolBlock

from .. import _mxnet
from .state import before, is_frozen, remember

# The networks that were known when the gradient of a Parameter was switched off.
_switched_in: weakref.WeakKeyDictionary[Parameter, weakref.WeakSet[Block]] = weakref.WeakKeyDictionary()


def restore_gradients(params: Iterable[Parameter]) -> None:
    """Request the gradients of frozen Parameters again; what is in them already counts as used."""
    params = list(params)
    found = {param: before(param) for param in params}
    request_gradients({param: was.grad_req for param, was in found.items() if was is not None})
    for param in params:
        _mxnet.discard_gradient(param)


def request_gradients(requests: Mapping[Parameter, str]) -> None:
    """Set ``grad_req`` of Parameters, and drop the operators that would go on with another."""
    changed = {param: grad_req for param, grad_req in requests.items() if param.grad_req != grad_req}
    try:
        for param, grad_req in changed.items():
            was = before(param)
            if was is not None:
                remember(param, *was)
            param.grad_req = grad_req
    finally:  # whatever interrupts it
        _mxnet.drop_static_operators(set(changed))


def switch_off_gradients(roots: Sequence[Block], params: Collection[Parameter]) -> None:
    """Request no gradient of those frozen ``params`` that can do without, and that of all others.

    Parameters
    ----------
    roots : sequence of Block
        The Blocks that are known. A Parameter that none of them holds is left as it is.
    params : collection of Parameter
        Frozen ones and others.
    """
    if not any(map(is_frozen, params)):
        return
    layers = list(_layers(roots))
    known = {param for layer in layers for param in layer.params}
    dispensable = _dispensable(layers, [param for param in params if param not in known])
    frozen = {param: before(param) for param in known.intersection(params)}
    requests = {p: "null" if p in dispensable else was.grad_req for p, was in frozen.items() if was is not None}
    for param in dispensable.intersection(requests):
        _switched_in.setdefault(param, weakref.WeakSet()).update(roots)
    request_gradients(requests)


def switch_on_gradients(params: Iterable[Parameter]) -> None:
    """Request the gradients on which those of ``params`` depend, which were just unfrozen."""
    roots = {block for param in params for block in _switched_in.get(param, ())}
    layers = list(_layers(roots))
    dispensable = _dispensable(layers, ())
    frozen = {param: before(param) for layer in layers for param in layer.params if param not in dispensable}
    request_gradients({param: was.grad_req for param, was in frozen.items() if was is not None})


class _Layer(NamedTuple):
    """Parameters that one operator may take together."""

    params: tuple[Parameter, ...]
    is_mxnets: bool  # MXNet's own layers take no other Parameters than their own, a user's may take any
    is_complete: bool = True  # or takes an input that may be computed from anything


def _layers(roots: Iterable[Block]) -> Iterator[_Layer]:
    """Yield the layers at and below some Blocks."""
    blocks: dict[Block, None] = {}
    for root in roots:
        root.apply(blocks.setdefault)
    for block in blocks:
        params = _mxnet.held_parameters(block)
        if isinstance(block, SymbolBlock):
            yield from _symbol_layers(block, params)
        elif params:
            is_mxnets = type(block).__module__.startswith("mxnet.gluon.")
            yield _Layer(tuple(params), is_mxnets)


def _symbol_layers(block: SymbolBlock, params: Sequence[Parameter]) -> Iterator[_Layer]:
    """Yield the layers of an imported network: what each FullyConnected takes, and every Parameter by itself."""
    by_name = {param.name: param for param in params}
    nodes = json.loads(_mxnet.own_symbol(block).tojson())["nodes"]
    below: list[frozenset[str]] = []  # the variables that each node is computed from
    for node in nodes:
        inputs = [below[source[0]] for source in node["inputs"]]
        below.append(frozenset([node["name"]]) if node["op"] == "null" else frozenset().union(*inputs))
        if node["op"] == "FullyConnected":
            names = frozenset().union(*inputs[1:])
            held = tuple(by_name[name] for name in sorted(names) if name in by_name)
            yield _Layer(held, True, is_complete=len(held) == len(names))
    for param in params:
        yield _Layer((param,), True)


def _dispensable(layers: Sequence[_Layer], elsewhere: Iterable[Parameter]) -> set[Parameter]:
    """Return the frozen Parameters of whole layers whose gradient nothing else depends on, nor any ``elsewhere``."""
    trains = {param for layer in layers for param in layer.params if _trains(param)}
    kept = {
        param
        for layer in layers
        if not (layer.is_complete and trains.isdisjoint(layer.params))
        for param in layer.params
    }
    # A user's layer can give FullyConnected a weight and a bias that are Parameters of two Blocks.
    of_users = {param for layer in layers if not layer.is_mxnets for param in layer.params}
    sizes, sizes_of_users = ({_size(param) for param in some} for some in (trains, trains & of_users))
    frozen = {param for layer in layers for param in layer.params if is_frozen(param)} - kept
    sizes_elsewhere = {_size(param) for param in elsewhere if _trains(param)}
    weights = {p for p in frozen if _may_be_weight_of(p, sizes_of_users)}
    weights |= {p for p in frozen if _units(p) and not sizes_elsewhere.isdisjoint((_units(p)[0], None))}
    weights |= {p for p in frozen & of_users if _units(p) and not sizes.isdisjoint((_units(p)[0], None))}
    return frozen - weights


def _may_be_weight_of(param: Parameter, sizes: Collection[int | None]) -> bool:
    """Whether FullyConnected can take ``param`` beside a bias of one of these sizes; None is of any size.

    The weight may be transposed or reshaped on the way, and the bias put together from several Parameters.
    """
    shape = _units(param)
    if not shape or not sizes:
        return False
    units = {math.prod(some) for count in range(1, len(shape) + 1) for some in itertools.combinations(shape, count)}
    return any(size is None or any(n == size or (size > 1 and n % size == 0) for n in units) for size in sizes)


def _units(param: Parameter) -> tuple[int, ...]:
    """Return the shape of what may be the weight of FullyConnected: 0 is not known yet; () if it cannot be one."""
    shape = param.shape or _mxnet.shape(param) or (0, 0)
    return tuple(shape) if len(shape) in (2, 3) else ()


def _trains(param: Parameter) -> bool:
    return not (is_frozen(param) or param.grad_req == "null" or _mxnet.is_auxiliary(param))


def _size(param: Parameter) -> int | None:
    shape = _mxnet.shape(param)
    return None if shape is None else math.prod(shape)
