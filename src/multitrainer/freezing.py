"""Frozen layers: no gradient, no update, and BatchNorm statistics that stay as they are.

A frozen Parameter has ``lr_mult = 0`` and ``grad_req = 'null'``. A BatchNorm none of whose own parameters trains runs
on its running statistics, as in Keras; MXNet bakes that choice into the graph of every hybridized parent, so those are
traced anew.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any, Callable, Iterable, Iterator, Sequence

from mxnet.gluon import Block, Parameter

from . import _mxnet, prefix, symbolic
from .targets import blocks_of, collect, describe

# What a frozen Parameter or BatchNorm had before is kept on the object itself, where copies and pickles take it along.
_BEFORE = "_multitrainer_before"

_watches: weakref.WeakSet[_Watch] = weakref.WeakSet()


def freeze(block: Any, within: Block | None = None) -> None:
    """Freeze a Block: its weights and its BatchNorm statistics stay bit for bit as they are.

    Gradients still flow through it to layers below. A `MultiLRTrainer` does this by itself for every multiplier of 0;
    this function is for code that has no trainer. (In a trainer, a schedule goes on regardless: there,
    ``set_lr_mult({block: 0})`` ends it.)

    Parameters
    ----------
    block : Block, or any other target
        What to freeze. Only a Block tells where its BatchNorm layers are; of Parameters alone, a warning says that
        their statistics still move.
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
    prefix.divide_traces(roots)
    symbolic.record(params.values(), roots)
    covered = hold_statistics(roots, lambda: pending) | symbolic.on_global_statistics(roots)
    warn_of_statistics(params.values(), collect(block, "freeze").values(), covered)


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
        _, lr_mult = getattr(param, _BEFORE, (None, 1.0))
        param.lr_mult = param.lr_mult or lr_mult or 1.0
        unfreeze_parameter(param, asked_for=not is_held(param))
    symbolic.record(params.values(), roots)
    hold_statistics(roots, lambda: pending)


def freeze_parameter(param: Parameter, lr_mult: float | None = None) -> None:
    """Freeze one Parameter, remembering its gradient request and its multiplier.

    ``lr_mult`` is the multiplier to remember, where the Parameter already holds the 0.
    """
    if not is_held(param):
        setattr(param, _BEFORE, (param.grad_req, param.lr_mult if lr_mult is None else lr_mult))
    param.lr_mult = 0.0
    param.grad_req = "null"


def unfreeze_parameter(param: Parameter, asked_for: bool = False) -> None:
    """Give a Parameter the gradient request back that it had; ``asked_for``, 'write' if that was none."""
    if param.grad_req == "null":
        before, _ = getattr(param, _BEFORE, ("null", None))
        param.grad_req = "write" if asked_for and before == "null" else before
    if is_held(param):
        delattr(param, _BEFORE)


def remembered(param: Parameter) -> tuple[str, float] | None:
    """Return the gradient request and the multiplier that a frozen Parameter had before, or None."""
    return getattr(param, _BEFORE, None)


def remember(param: Parameter, grad_req: str, lr_mult: float) -> None:
    """Note what a frozen Parameter is to have again when it is unfrozen."""
    setattr(param, _BEFORE, (grad_req, lr_mult))


def is_held(param: Parameter) -> bool:
    """Whether this module took the gradient of ``param`` away and knows what to give back."""
    return hasattr(param, _BEFORE)


def gradient_pending(params: Iterable[Parameter]) -> bool:
    """Whether a backward pass was made whose gradients no step has used yet."""
    return any(_mxnet.has_fresh_gradient(param) for param in params)


def hold_statistics(roots: Sequence[Block], pending: Callable[[], bool]) -> set[Parameter]:
    """Put every BatchNorm below ``roots`` on the statistics that its parameters call for; forget traces that differ.

    Parameters
    ----------
    roots : sequence of Block
        The Blocks that are known, a network or parts of it.
    pending : callable () -> bool
        Whether a step is due for a forward pass that has already run; asked only where a BatchNorm is switched.

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
    outermost = [path for layer, paths in found.items() if layer in stale for path in paths if path[0] not in inner]
    # A slice of a network is a Block that nobody calls: the first on the way that can be traced is what to watch.
    watched = {next((block for block in path if _mxnet.is_hybridized(block)), None) for path in outermost}
    for block in watched - {None}:
        _Watch(block, pending())
    return {param for layer in found for param in layer.params.values()}


def warn_of_old_traces(params: Iterable[Parameter]) -> None:
    """Warn of every Block of ``params`` that was frozen or unfrozen inside a trace which goes on as before.

    A traced parent runs its graph and calls none of its children; so a Block that was not called since it was changed
    sits in a trace made before. To be called once a step.
    """
    watches = [watch for watch in list(_watches) if not watch.dismissed()]
    members = set(params) if watches else set()
    for watch in watches:
        if members.isdisjoint(watch.params) or watch.still_waiting():
            continue
        watch.stop()
        warn(
            f"{describe(watch.block)} was frozen or unfrozen and has not been called since. If the network around it "
            "was traced before that, it goes on with its BatchNorm layers as they were: call net.hybridize() on the "
            "network again, or name the whole network first: MultiLRTrainer([net, ...]), freeze(block, within=net)"
        )


def warn_of_statistics(frozen: Iterable[Parameter], members: Iterable[Parameter], covered: Iterable[Parameter]) -> None:
    """Warn of statistics among ``members`` that belong to ``frozen`` Parameters and to no BatchNorm that was found."""
    stems = {_mxnet.stem(param) for param in frozen}
    if not stems:
        return
    covered = set(covered)
    moving = [
        param.name
        for param in members
        if _mxnet.stem(param) in stems and _mxnet.is_statistic(param) and param not in covered
    ]
    if moving:
        warn(
            f"frozen, but their BatchNorm statistics still move: {', '.join(moving[:3])}"
            f"{', ...' if len(moving) > 3 else ''}. Name the Block that holds the layers instead of its Parameters, as "
            "in MultiLRTrainer([net, ...]) or freeze(block); inside a SymbolBlock they cannot be held"
        )


def warn(message: str) -> None:
    """Warn, pointing at the line outside this package that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("multitrainer."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


class _Watch:
    """Tells whether a Block was called since."""

    def __init__(self, block: Block, pending: bool) -> None:
        previous = getattr(block, "_multitrainer_watch", None)
        if previous is not None:
            previous.stop()
        self.block = block
        self.params = frozenset(block.collect_params().values())
        self._called = False
        self._pending = pending
        self._handle = block.register_forward_pre_hook(self._note)
        block._multitrainer_watch = self  # lives as long as the Block, and no longer
        _watches.add(self)

    def _note(self, *_: Any) -> None:
        self._called = True

    def dismissed(self) -> bool:
        """Stop if the Block was called, which is all there is to know; return whether it was."""
        if self._called:
            self.stop()
        return self._called

    def still_waiting(self) -> bool:
        """Whether the step that asks belongs to a forward pass from before the change."""
        waiting, self._pending = self._pending, False
        return waiting

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
