"""Frozen layers: no gradient, no update, and BatchNorm statistics that stay as they are.

A frozen Parameter has ``lr_mult = 0`` and ``grad_req = 'null'``. A BatchNorm none of whose own parameters trains runs
on its running statistics, as in Keras; MXNet bakes that choice into the graph of every hybridized parent, so those are
traced anew.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any, Iterable, Iterator, Sequence

from mxnet.gluon import Block, Parameter

from . import _mxnet
from .targets import blocks_of, collect, describe

# What a frozen Parameter or BatchNorm had before is kept on the object itself, where copies and pickles take it along.
_BEFORE = "_multitrainer_before"

_watches: weakref.WeakSet[_Watch] = weakref.WeakSet()


def freeze(block: Any, within: Block | None = None) -> None:
    """Freeze a Block: its weights and its BatchNorm statistics stay bit for bit as they are.

    Gradients still flow through it to layers below. A `MultiLRTrainer` does this by itself for every multiplier of 0;
    this function is for code that has no trainer.

    Parameters
    ----------
    block : Block, or any other target
        What to freeze.
    within : Block, optional
        The whole network. Needed if it was hybridized and called before, for it is traced anew.

    Raises
    ------
    TypeError, ValueError
        If ``block`` is no target or holds nothing to freeze, or ``within`` does not contain it.

    See Also
    --------
    unfreeze

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import freeze
    >>> net = mx.gluon.nn.HybridSequential()
    >>> net.add(mx.gluon.nn.Dense(4, in_units=2), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Dense(1, in_units=4))
    >>> freeze(net[:2], within=net)
    >>> net[0].weight.grad_req, net[0].weight.lr_mult, net[2].weight.grad_req
    ('null', 0.0, 'write')
    """
    params, roots = _targets(block, within, "freeze")
    pending = gradient_pending(params.values())
    for param in params.values():
        freeze_parameter(param)
    hold_statistics(roots, pending)


def unfreeze(block: Any, within: Block | None = None) -> None:
    """Undo `freeze`: gradients are requested as before ('write' or 'add'), with the multiplier from before.

    Parameters
    ----------
    block : Block, or any other target
        What to unfreeze.
    within : Block, optional
        The whole network. Needed if it was hybridized and called before, for it is traced anew.

    Raises
    ------
    TypeError, ValueError
        If ``block`` is no target or holds no Parameter, or ``within`` does not contain it.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import freeze, unfreeze
    >>> layer = mx.gluon.nn.Dense(4, in_units=2)
    >>> layer.weight.lr_mult = 0.1
    >>> freeze(layer)
    >>> unfreeze(layer)
    >>> layer.weight.grad_req, layer.weight.lr_mult
    ('write', 0.1)
    """
    params, roots = _targets(block, within, "unfreeze")
    pending = gradient_pending(params.values())
    for param in params.values():
        request, lr_mult = getattr(param, _BEFORE, (None, 1.0))
        param.lr_mult = param.lr_mult or lr_mult or 1.0
        unfreeze_parameter(param, request)
    hold_statistics(roots, pending)


def freeze_parameter(param: Parameter, lr_mult: float | None = None) -> None:
    """Freeze one Parameter, remembering its gradient request and its multiplier.

    ``lr_mult`` is the multiplier to remember, where the Parameter already holds the 0.
    """
    if not is_held(param):
        setattr(param, _BEFORE, (param.grad_req, param.lr_mult if lr_mult is None else lr_mult))
    param.lr_mult = 0.0
    param.grad_req = "null"


def unfreeze_parameter(param: Parameter, request: str | None = None) -> None:
    """Give a Parameter its gradient request back: ``request``, else the one from before, else 'write'."""
    before, _ = getattr(param, _BEFORE, ("null", None))
    if request is not None:
        param.grad_req = request
    elif param.grad_req == "null":
        param.grad_req = before if before != "null" else "write"
    if is_held(param):
        delattr(param, _BEFORE)


def is_held(param: Parameter) -> bool:
    """Whether this module took the gradient of ``param`` away and knows what to give back."""
    return hasattr(param, _BEFORE)


def gradient_pending(params: Iterable[Parameter]) -> bool:
    """Whether a backward pass was made whose gradients no step has used yet."""
    return any(_mxnet.has_fresh_gradient(param) for param in params)


def hold_statistics(roots: Sequence[Block], pending: bool) -> set[Parameter]:
    """Put every BatchNorm below ``roots`` on the statistics that its parameters call for; forget traces that differ.

    Parameters
    ----------
    roots : sequence of Block
        The Blocks that are known, a network or parts of it.
    pending : bool
        Whether a step is due for a forward pass that has already run.

    Returns
    -------
    set of Parameter
        All parameters of the BatchNorms that were found.
    """
    found: dict[_mxnet.BatchNorm, list[tuple[Block, ...]]] = {}
    for root in roots:
        for layer, path in _batchnorms(root, ()):
            found.setdefault(layer, []).append(path)
    stale: set[Block] = set()
    for layer, paths in found.items():
        if _switch(layer, paths):
            stale.update(block for path in paths for block in path)
    for block in stale:
        _mxnet.forget_trace(block)
    inner = {block for paths in found.values() for path in paths for block in path[1:]}
    for root in roots:
        if root in stale and root not in inner and _mxnet.is_hybridized(root):
            _Watch(root, pending)
    return {param for layer in found for param in layer.params.values()}


def warn_of_old_traces(params: Iterable[Parameter]) -> None:
    """Warn of every Block of ``params`` that was frozen or unfrozen inside a trace which goes on as before.

    A traced parent runs its graph and calls none of its children; so a Block that was not called since it was changed
    sits in a trace made before. To be called once a step.
    """
    members = set(params)
    for watch in list(_watches):
        if members.isdisjoint(watch.block.collect_params().values()) or watch.still_waiting():
            continue
        watch.stop()
        if not watch.called:
            warnings.warn(
                f"{describe(watch.block)} was frozen or unfrozen, but the network around it was traced before that and "
                "goes on with its BatchNorm layers as they were. Call net.hybridize() on the network again, or name "
                "the whole network first: MultiLRTrainer([net, ...]), freeze(block, within=net)",
                stacklevel=4,
            )


class _Watch:
    """Tells whether a Block was called since."""

    def __init__(self, block: Block, pending: bool) -> None:
        previous = getattr(block, "_multitrainer_watch", None)
        if previous is not None:
            previous.stop()
        self.block = block
        self.called = False
        self._pending = pending
        self._handle = block.register_forward_pre_hook(self._note)
        block._multitrainer_watch = self  # lives as long as the Block, and no longer
        _watches.add(self)

    def _note(self, *_: Any) -> None:
        self.called = True

    def still_waiting(self) -> bool:
        """Whether the step that asks belongs to a forward pass from before the change."""
        waiting, self._pending = self._pending, False
        return waiting and not self.called

    def stop(self) -> None:
        self._handle.detach()
        _watches.discard(self)
        self.block._multitrainer_watch = None


def _targets(block: Any, within: Block | None, verb: str) -> tuple[dict[str, Parameter], list[Block]]:
    params = {name: param for name, param in collect(block, verb).items() if not _mxnet.is_auxiliary(param)}
    if not params:
        raise ValueError(f"{verb}: {describe(block)} holds no parameter that could train")
    roots = list(blocks_of(block))
    if within is None:
        return params, roots
    if not isinstance(within, Block):
        raise TypeError(f"{verb}: within must be the Block around {describe(block)}, got {describe(within)}")
    missing = set(params.values()).difference(within.collect_params().values())
    if missing:
        names = ", ".join(sorted(param.name for param in missing)[:3])
        raise ValueError(f"{verb}: within ({describe(within)}) does not contain {describe(block)}: {names}")
    return params, [within, *roots]


def _batchnorms(block: Block, path: tuple[Block, ...]) -> Iterator[tuple[Any, tuple[Block, ...]]]:
    """Yield each BatchNorm below ``block`` with the Blocks that lead to it, itself the last."""
    path = (*path, block)
    if isinstance(block, _mxnet.BatchNorm):
        yield block, path
    for _, child in _mxnet.children(block):
        yield from _batchnorms(child, path)


def _switch(layer: Any, paths: Sequence[tuple[Block, ...]]) -> bool:
    """Put one BatchNorm on the statistics it should use; return whether that changed anything."""
    frozen = any(_is_frozen(path) for path in paths)
    if frozen == hasattr(layer, _BEFORE):
        return False
    before = _mxnet.use_global_stats(layer)
    if frozen:
        setattr(layer, _BEFORE, before)
        _mxnet.set_use_global_stats(layer, True)
    else:
        _mxnet.set_use_global_stats(layer, getattr(layer, _BEFORE))
        delattr(layer, _BEFORE)
    return before != _mxnet.use_global_stats(layer)


def _is_frozen(path: Sequence[Block]) -> bool:
    """Whether the innermost Block of ``path`` with parameters that could train has none that does."""
    for block in reversed(path):
        movable = [param for param in block.collect_params().values() if not _mxnet.is_auxiliary(param)]
        if movable:
            return all(param.lr_mult == 0 and is_held(param) for param in movable)
    return False
