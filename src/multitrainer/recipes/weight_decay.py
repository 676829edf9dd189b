"""No weight decay for biases and normalization layers."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import Block

from .._mxnet import is_auxiliary
from ..groups.param_group import ParamGroup
from ..groups.targets import collect, describe

_UNDECAYED = ("bias", "gamma", "beta")


def no_weight_decay(net: Any) -> ParamGroup:
    """Return a group of every bias, gamma and beta with ``wd_mult`` 0, so that only weights decay.

    Parameters
    ----------
    net : Block or any other target
        Where to search. Parameters are recognized by the ends of the names that Gluon's layers give them.

    Returns
    -------
    ParamGroup
        It sets no ``lr_mult``, so it can be combined with a recipe that does.

    Raises
    ------
    TypeError, ValueError
        If ``net`` is not a target, or has no such parameter.

    Notes
    -----
    From "Bag of Tricks" (He et al. 2018, arXiv:1812.01187, section 3.1); timm and GluonCV do it for whole networks.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import no_weight_decay
    >>> net = mx.gluon.nn.Dense(2, prefix='fc_')
    >>> no_weight_decay(net)
    ParamGroup(dict of 1 Parameters, wd_mult=0.0, name='no_weight_decay')
    """
    found = {
        name: param
        for name, param in collect(net, "no_weight_decay").items()
        if name.endswith(_UNDECAYED) and not is_auxiliary(param)
    }
    if not found:
        raise ValueError(
            f"no_weight_decay: {describe(net)} has no parameter whose name ends in {', '.join(_UNDECAYED)}; for others "
            "write ParamGroup(target, wd_mult=0)"
        )
    root = net if isinstance(net, Block) else None
    return ParamGroup._in_network(root, found, wd_mult=0, name="no_weight_decay")
