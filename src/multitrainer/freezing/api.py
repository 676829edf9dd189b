"""`freeze` and `unfreeze`, for code without a `MultiLRTrainer`."""

from __future__ import annotations

from typing import Any, Collection, Sequence

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from ..groups.targets import blocks_of, collect, describe
from ..symbolic import attributes
from .batchnorm import warn_of_statistics
from .freezer import freeze_parameter, gradient_pending, unfreeze_parameters, update_blocks
from .gradients import request_gradients, switch_off_gradients, switch_on_dependencies
from .state import before_freezing, wait_for_backward
from .user_warning import warn


def freeze(block: Any, within: Block | None = None) -> None:
    """Freeze a Block: its weights and its BatchNorm statistics stay bit for bit as they are.

    Gradients still flow through it to layers below. A `MultiLRTrainer` does this by itself for every multiplier of 0;
    this function is for code that has no such trainer. (It does not end a schedule of a trainer:
    ``trainer.set_lr_mult({block: 0})`` does.) Frozen Parameters get ``grad_req='null'``, which a stock `gluon.Trainer`
    leaves out, unless another gradient depends on theirs.

    Parameters
    ----------
    block : Block, or any other target
        What to freeze. If it is not a Block, its BatchNorm layers are unknown, and a warning says that their statistics
        still move.
    within : Block, optional
        The whole network. Needed if it was hybridized and called before: it is then traced again.

    Raises
    ------
    TypeError, ValueError
        If ``block`` is not a target or holds nothing to freeze, or ``within`` does not contain it.

    Warns
    -----
    UserWarning
        If the weight of a layer is frozen without its bias and no `MultiLRTrainer` owns it. The gradient of the weight
        stays on, because MXNet would compute a wrong gradient of the bias without it, so a stock Trainer still moves
        the weight.

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
    _switch_off_gradients([param for param in params.values() if not _is_left_out(param)], roots)
    attributes.write_to_symbols(params.values(), roots)
    held = update_blocks(roots, params.values(), lambda: pending)
    warn_of_statistics(params.values(), collect(block, "freeze").values(), held)


def unfreeze(block: Any, within: Block | None = None) -> None:
    """Undo `freeze`: gradients are requested as before ('write' or 'add'), with the multiplier from before.

    Parameters
    ----------
    block : Block, or any other target
        What to unfreeze.
    within : Block, optional
        The whole network. Needed if it was hybridized and called before: it is then traced again.

    Raises
    ------
    TypeError, ValueError
        If ``block`` is not a target or holds no trainable Parameter, or ``within`` does not contain it.

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
    before = {param: before_freezing(param) for param in params.values()}
    frozen = [param for param, found in before.items() if found is not None]
    for param, found in before.items():
        param.lr_mult = param.lr_mult or (found.lr_mult if found else 0) or 1.0
    unfreeze_parameters(frozen)
    wait_for_backward(frozen)
    request_gradients({p: "write" for p in params.values() if before[p] is None and p.grad_req == "null"})
    switch_on_dependencies(params.values())
    attributes.write_to_symbols(params.values(), roots)
    update_blocks(roots, params.values(), lambda: pending)


def _switch_off_gradients(params: Collection[Parameter], roots: Sequence[Block]) -> None:
    """Switch off the gradients of frozen Parameters, and warn about those on which another gradient depends."""
    switch_off_gradients(roots, params)
    held = {param for root in roots for param in root.collect_params().values()}
    request_gradients({param: "null" for param in params if param not in held})
    kept = [param.name for param in params if param in held and param.grad_req != "null"]
    if kept:
        warn(
            f"freeze: the gradient of {', '.join(kept[:3])}{', ...' if len(kept) > 3 else ''} stays on, because "
            "MXNet would compute a wrong one for the bias of the same layer: freeze the whole layer, or train with a "
            "MultiLRTrainer, which leaves the update out; a stock Trainer does not"
        )


def _is_left_out(param: Parameter) -> bool:
    """Whether the trainer that owns a frozen Parameter leaves it out of its updates by itself."""
    return getattr(_mxnet.trainer_of(param), "leaves_out_frozen", False)


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
