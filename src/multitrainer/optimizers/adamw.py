"""AdamW with the definition of PyTorch, registered with MXNet as ``'adamw'``."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any, NamedTuple

import numpy as np
from mxnet import optimizer
from mxnet.ndarray import NDArray, adam_update

_PYTORCH_NAMES = {"lr": "learning_rate", "betas": "beta1 and beta2", "eps": "epsilon", "weight_decay": "wd"}


class Coefficients(NamedTuple):
    """The numbers of one update of one Parameter."""

    kept: float  # the part of the weight that decay leaves; exact as a float32
    rate: float  # learning rate of Adam's operator
    epsilon: float  # of Adam's operator


class AdamW(optimizer.Adam):
    """Adam with weight decay that is decoupled from the gradient: `Loshchilov & Hutter, 2019`_, as PyTorch defines it.

    At update t of a Parameter with ``lr = learning_rate * lr_mult`` and ``wd = wd * wd_mult``::

        w = (1 - lr * wd) * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + epsilon)

    After ``import multitrainer`` every part of MXNet that takes the name of an optimizer takes ``'adamw'``.

    Parameters
    ----------
    learning_rate : float, default 0.001
        With an ``lr_scheduler``, give the rate to both: MXNet sets the ``base_lr`` of a scheduler to this number, its
        default included. FactorScheduler and MultiFactorScheduler go by that, PolyScheduler and CosineScheduler by the
        ``base_lr`` that they were made with.
    beta1, beta2 : float in [0, 1), default 0.9 and 0.999
        Decay rates of the means of the gradient and of its square.
    epsilon : float >= 0, default 1e-8
        Added to the root, after bias correction.
    wd : float >= 0, default 0.01
        Weight decay, as fraction of the weight for a learning rate of 1. The default is that of PyTorch; MXNet's other
        optimizers have 0.
    correct_bias : bool, default True
        Whether to divide the means by ``1 - beta**t``. BERT was trained without.
    **kwargs
        As `mxnet.optimizer.Optimizer` takes them: ``clip_gradient``, ``rescale_grad``, ``lr_scheduler``,
        ``multi_precision`` for weights in float16, and so on.

    Raises
    ------
    TypeError
        If a setting is unknown or is not a number. For PyTorch's ``lr``, ``betas``, ``eps`` and ``weight_decay``, it
        says MXNet's name.
    ValueError
        If a beta is not in [0, 1) or is rounded to 1 in float32, if epsilon or wd is not a number >= 0, or if
        ``lazy_update`` is asked for.

    Notes
    -----
    PyTorch's trajectory is met within 1e-6 over 100 updates. MXNet's operator ``contrib.adamw_update`` is not used: it
    adds epsilon to a root that is not corrected, rounds ``1 - beta2`` to float32 (an error of 1.3e-5 for 0.999),
    multiplies the gradient in place, and skips the update if ``rescale_grad`` is 0.

    A row_sparse gradient updates all rows, as if it were dense: untouched rows decay, too, and so do their means.

    .. _Loshchilov & Hutter, 2019: https://arxiv.org/abs/1711.05101

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer, no_weight_decay
    >>> net = mx.gluon.nn.Dense(1, in_units=2)
    >>> net.initialize()
    >>> trainer = MultiLRTrainer([net, no_weight_decay(net)], 'adamw', {'learning_rate': 1e-4, 'wd': 0.05})
    >>> trainer.optimizer.wd
    0.05
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        wd: float = 0.01,
        correct_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        for name in kwargs:
            if name in _PYTORCH_NAMES:
                raise TypeError(f"AdamW takes {_PYTORCH_NAMES[name]}, which is MXNet's name for {name!r} of PyTorch")
        _check_settings({"beta1": beta1, "beta2": beta2}, {"epsilon": epsilon, "wd": wd})
        if kwargs.pop("lazy_update", False):
            raise ValueError("AdamW has no lazy_update: every update decays all rows. Leave it out, or use 'adam'")
        super().__init__(learning_rate, beta1, beta2, epsilon, lazy_update=False, wd=wd, **kwargs)
        self.correct_bias = correct_bias

    def update(self, index: int, weight: NDArray, grad: NDArray, state: tuple[NDArray, NDArray]) -> None:
        """Make one update; see `mxnet.optimizer.Optimizer.update`."""
        self._update_count(index)
        from .. import _mxnet  # not above: another thread may import it, and wait for mxnet, which imports this module

        (times,) = _mxnet.times_updated(self, [index])
        lr, wd = self._get_lr(index), self._get_wd(index)
        kept, rate, epsilon = coefficients(self, lr, wd, times)
        if weight.dtype == np.float64:  # a product reads it whole; Adam's operator reads float32 alone
            kept = 1 - lr * wd
        settings = {"beta1": self.beta1, "beta2": self.beta2, "rescale_grad": self.rescale_grad}
        if self.clip_gradient:
            settings["clip_gradient"] = self.clip_gradient
        if kept != 1:
            weight *= kept
        adam_update(weight, grad, *state, out=weight, lazy_update=False, lr=rate, epsilon=epsilon, wd=0, **settings)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse protocol 0, by which `mxnet.kvstore.KVStore.set_optimizer` alone pickles: for parameter servers.

        A server unpickles while it imports MXNet, when multitrainer cannot be imported. A synchronous one would then
        store gradients in place of weights, without an error.
        """
        if protocol == 0:
            raise RuntimeError(
                "AdamW cannot run on parameter servers, which know the optimizers of MXNet alone. Let the workers "
                "update: a synchronous kvstore such as 'dist_sync', dense weights and gradients, "
                "update_on_kvstore=False (MXNET_UPDATE_ON_KVSTORE=0 under Module); or use 'adam'"
            )
        return super().__reduce_ex__(protocol)


def coefficients(optimizer: AdamW, lr: float, wd: float, times: int) -> Coefficients:
    """Return the settings of Adam's operator that give AdamW, for a Parameter's update number ``times``.

    The operator has no bias correction, and its betas are float32: in float32, 1 - 0.999 is too small by a relative
    1.3e-5. So what the operator has as mean is ``bias`` times the mean.
    """
    betas = [(beta, float(np.float32(beta))) for beta in (optimizer.beta1, optimizer.beta2)]
    if optimizer.correct_bias:
        bias1, bias2 = (1 - rounded**times for _, rounded in betas)
    else:
        bias1, bias2 = ((1 - rounded) / (1 - beta) for beta, rounded in betas)
    root = math.sqrt(bias2)
    return Coefficients(float(np.float32(1 - lr * wd)), lr * root / bias1, optimizer.epsilon * root)


def _check_settings(betas: dict[str, Any], others: dict[str, Any]) -> None:
    for name, value in {**betas, **others}.items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"{name} of AdamW must be a number, not {value!r} of type {type(value).__name__}")
    for name, value in betas.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} of AdamW must be at least 0 and less than 1, not {value!r}")
        if np.float32(value) == 1:
            raise ValueError(
                f"{name} of AdamW must be less than 1 in float32, as MXNet's operator reads it, not {value!r}: the "
                "largest is 0.99999994"
            )
    for name, value in others.items():
        if not value >= 0:
            raise ValueError(f"{name} of AdamW must be a number >= 0, not {value!r}")


def register(kind: type[optimizer.Optimizer]) -> None:
    """Register an optimizer with MXNet by the name of its class, unless the user has another of that name."""
    name = kind.__name__.lower()
    there = optimizer.Optimizer.opt_registry.get(name)
    if there is None or (there.__module__, there.__qualname__) == (kind.__module__, kind.__qualname__):
        optimizer.Optimizer.opt_registry.pop(name, None)  # this module was imported again
        optimizer.register(kind)
    else:
        warnings.warn(
            f"the optimizer {name!r} stays {there.__module__}.{there.__qualname__}, which was registered before "
            f"multitrainer was imported; multitrainer's is multitrainer.{kind.__name__}()",
            stacklevel=2,
        )


register(AdamW)
