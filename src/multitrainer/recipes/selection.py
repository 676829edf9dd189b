"""Train the normalization layers or the biases of a network alone, and its head."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import Block

from .. import _mxnet
from ..groups.param_group import ParamGroup
from ..groups.targets import Multiplier, Parameters, check_multiplier, collect, describe
from .layers import named_stages

# The ends of the names that Gluon's layers give their Parameters. What PyTorch calls the bias of a norm is a beta here.
_ENDINGS = {"norm": ("gamma", "beta"), "bias": ("bias", "beta")}


def train_only(net: Block, kind: str, head: Any = None, head_lr_mult: Multiplier = 1.0) -> list[ParamGroup]:
    """Train the normalization layers or the biases of a network, and its head; freeze the rest.

    Parameters
    ----------
    net : Block
        The network.
    kind : {'norm', 'bias'}
        ``'norm'``: the gamma and beta of every BatchNorm, SyncBatchNorm, LayerNorm, GroupNorm and InstanceNorm;
        ``'bias'``: every bias and beta. They are recognized by the ends of the names that Gluon's layers give them.
    head : target, optional
        What trains too, whatever its kind: by default the last of the `stages`, because the output layer of a new task
        knows nothing yet. ``[]`` for nothing.
    head_lr_mult : float or callable
        The multiplier of the head.

    Returns
    -------
    list of ParamGroup
        ``frozen`` with multiplier 0, ``norm`` or ``bias`` with multiplier 1, and ``head`` with ``head_lr_mult``; empty
        ones are left out. Every Parameter is in one of them.

    Raises
    ------
    TypeError, ValueError
        If ``net`` is not a Block, ``kind`` is another word, or ``head`` is not a part of the network; if nothing but
        the head is of that kind; if ``head_lr_mult`` is not a multiplier, or there is no head to apply it to; if no
        head is given for a network that cannot be ordered (see `stages`).

    Notes
    -----
    A BatchNorm layer whose gamma or beta trains normalizes with the statistics of the batch, and its running
    statistics move; only the others are frozen with their Blocks or groups.

    BitFit (Ben Zaken et al. 2022, arXiv:2106.10199) trains biases; Frankle et al. 2021 (arXiv:2003.00152) train
    BatchNorm. AutoGluon calls them ``bit_fit`` and ``norm_fit``, and trains the head too.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer, train_only
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1(classes=5, prefix='net_')
    >>> net.initialize()
    >>> _ = net(mx.nd.zeros((1, 3, 32, 32)))
    >>> trainer = MultiLRTrainer(train_only(net, 'norm'), 'sgd', {'learning_rate': 0.01})
    >>> print(trainer.summary())
    group   parameters      values  lr_mult  learning rate  wd  state
    frozen          20  11,166,912        0              0   0  frozen
    norm            40       9,600        1           0.01   0  trained
    head             2       2,565        1           0.01   0  trained
    """
    if not isinstance(net, Block):
        raise TypeError(f"train_only: expected a network, which is a Block, got {describe(net)}")
    if kind not in _ENDINGS:
        raise ValueError(f"train_only: kind must be 'norm' or 'bias', got {kind!r}")
    of_head = check_multiplier(head_lr_mult, "head_lr_mult of train_only")
    params = collect(net, "train_only")
    in_head = _head(net, params, head)
    if of_head != 1 and not in_head:
        raise ValueError(f"train_only: head_lr_mult {head_lr_mult!r} was given without a head to apply it to")
    chosen = {
        name: param
        for name, param in params.items()
        if name.endswith(_ENDINGS[kind]) and name not in in_head and not _mxnet.is_auxiliary(param)
    }
    if not chosen:
        raise ValueError(
            f"train_only: no parameter of {describe(net)} outside its head has a name that ends in "
            f"{' or '.join(_ENDINGS[kind])}; for others write ParamGroup(target, lr_mult=1)"
        )
    layers = {_mxnet.layer_prefix(param) for param in chosen.values()}
    groups: dict[str, Parameters] = {"frozen": {}, kind: {}, "head": in_head}
    for name, param in params.items():
        if name not in in_head:
            trains = name in chosen or (_mxnet.is_statistic(param) and _mxnet.layer_prefix(param) in layers)
            groups[kind if trains else "frozen"][name] = param
    multipliers = {"frozen": 0.0, kind: 1.0, "head": of_head}
    return [
        ParamGroup._in_network(net, members, multipliers[name], name=name)
        for name, members in groups.items()
        if members
    ]


def _head(net: Block, params: Parameters, head: Any) -> Parameters:
    """Return the Parameters of the head in the order of ``params``."""
    if head is None:
        try:
            head = named_stages(net)[-1].target
        except ValueError as error:
            raise ValueError(f"train_only: name the head=, such as net.output, or [] for none ({error})") from error
    held = set(collect(head, "head of train_only").values())
    foreign = [param.name for param in held if params.get(param.name) is not param]
    if foreign:
        raise ValueError(f"head of train_only: {describe(net)} does not hold {', '.join(sorted(foreign)[:3])}")
    return {name: param for name, param in params.items() if param in held}
