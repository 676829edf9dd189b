"""Switch off the gradients of frozen Parameters, and request them again."""

from __future__ import annotations

import weakref
from typing import Collection, Iterable, Mapping, Sequence

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from .gradient_layers import layers_of, without_dependents
from .state import before_freezing, is_frozen, mark_frozen

# The Blocks that were known when the gradient of a Parameter was switched off.
_switched_off_in: weakref.WeakKeyDictionary[Parameter, weakref.WeakSet[Block]] = weakref.WeakKeyDictionary()


def request_gradients(requests: Mapping[Parameter, str]) -> None:
    """Set ``grad_req`` of Parameters, and drop the operators that were built for another one."""
    changed = {param: grad_req for param, grad_req in requests.items() if param.grad_req != grad_req}
    try:
        for param, grad_req in changed.items():
            before = before_freezing(param)
            if before is not None:
                mark_frozen(param, *before)
            param.grad_req = grad_req
    finally:  # also if it is interrupted
        _mxnet.drop_static_operators(set(changed))


def restore_gradients(params: Iterable[Parameter]) -> None:
    """Request the gradients of frozen Parameters again; what they hold already counts as used."""
    params = list(params)
    _request_as_before(params)
    for param in params:
        _mxnet.discard_gradient(param)


def switch_off_gradients(roots: Sequence[Block], params: Collection[Parameter]) -> None:
    """Switch off the gradients of frozen Parameters on which no other gradient depends; request all others.

    Parameters
    ----------
    roots : sequence of Block
        The known Blocks. A Parameter that none of them holds is left as it is.
    params : collection of Parameter
        Frozen Parameters and others.
    """
    if not any(map(is_frozen, params)):
        return
    layers = layers_of(roots)
    known = {param for layer in layers for param in layer.params}
    independent = without_dependents(layers, [param for param in params if param not in known])
    frozen = {param for param in known.intersection(params) if is_frozen(param)}
    for param in frozen & independent:
        _switched_off_in.setdefault(param, weakref.WeakSet()).update(roots)
    request_gradients(dict.fromkeys(frozen & independent, "null"))
    _request_as_before(frozen - independent)


def switch_on_dependencies(params: Iterable[Parameter]) -> None:
    """Request the gradients of frozen Parameters on which those of ``params`` depend, which were just unfrozen."""
    layers = layers_of({block for param in params for block in _switched_off_in.get(param, ())})
    independent = without_dependents(layers, ())
    _request_as_before(param for layer in layers for param in layer.params if param not in independent)


def _request_as_before(params: Iterable[Parameter]) -> None:
    """Request the gradients of those of ``params`` that are frozen, as before they were."""
    frozen = {param: before_freezing(param) for param in params}
    request_gradients({param: before.grad_req for param, before in frozen.items() if before is not None})
