"""Freeze and unfreeze Blocks: the update of what is frozen is left out, and BatchNorm statistics stay as they are."""

from __future__ import annotations

from typing import Any, Collection, Sequence

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from ..groups.targets import blocks_of, collect, describe
from ..symbolic import attributes
from .batchnorm import warn_of_statistics
from .freezer import freeze_parameter, gradient_pending, hold_blocks, unfreeze_parameters
from .gradients import request_gradients, switch_off_gradients, switch_on_gradients
from .state import await_backward, before
from .user_warning import warn


def freeze(block: Any, within: Block | None = None) -> None:
    """Freeze a Block: its weights and its BatchNorm statistics stay bit for bit as they are.

    Gradients still flow through it to layers below. A `MultiLRTrainer` does this by itself for every multiplier of 0;
    this function is for code that has no such trainer. (In a trainer, a schedule goes on regardless: there,
    ``set_lr_mult({block: 0})`` ends it.) A stock `gluon.Trainer` leaves out what has ``grad_req='null'``, which is what
    the frozen Parameters get unless another gradient depends on theirs.

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

    Warns
    -----
    UserWarning
        If the weight of a layer is frozen without its bias and no `MultiLRTrainer` owns it: the gradient stays on,
        since MXNet computes a wrong one for the bias otherwise, and a stock Trainer goes on moving the weight.

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
    _switch_off([param for param in params.values() if not _is_left_out(param)], roots)
    attributes.record(params.values(), roots)
    covered = hold_blocks(roots, params.values(), lambda: pending) | attributes.on_global_statistics(roots)
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
    frozen = {param: before(param) for param in params.values()}
    for param, was in frozen.items():
        param.lr_mult = param.lr_mult or (was.lr_mult if was else 0) or 1.0
    unfreeze_parameters([param for param, was in frozen.items() if was is not None])
    await_backward(param for param, was in frozen.items() if was is not None)
    request_gradients({p: "write" for p, was in frozen.items() if was is None and p.grad_req == "null"})
    switch_on_gradients(params.values())
    attributes.record(params.values(), roots)
    hold_blocks(roots, params.values(), lambda: pending)


def _switch_off(params: Collection[Parameter], roots: Sequence[Block]) -> None:
    """Request no gradient of frozen Parameters; warn of those without which another gradient would be wrong."""
    switch_off_gradients(roots, params)
    held = {param for root in roots for param in root.collect_params().values()}
    request_gradients({param: "null" for param in params if param not in held})
    kept = [param.name for param in params if param in held and param.grad_req != "null"]
    if kept:
        warn(
            f"freeze: the gradient of {', '.join(kept[:3])}{', ...' if len(kept) > 3 else ''} stays on, for MXNet "
            "would compute a wrong one for the bias of the same layer: freeze the whole layer, or train with a "
            "MultiLRTrainer, which leaves the update out; a stock Trainer does not"
        )


def _is_left_out(param: Parameter) -> bool:
    """Whether the trainer that owns a frozen Parameter leaves it out of its updates by itself."""
    return getattr(_mxnet.owner(param), "leaves_out_frozen", False)


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
