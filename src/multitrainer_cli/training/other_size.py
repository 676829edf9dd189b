"""Whether a network can take images of another size than it was made for."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon

from ..errors import UserError


def check_input_size(net: gluon.HybridBlock, model: str, size: int, classes: int, context: mx.Context) -> None:
    """Raise UserError if an initialized network cannot use all of an image of another size than its own.

    It is run once. Its output must be a score for each class; that fails, for example, if a Dense layer follows a
    Flatten. And a pooling layer that leaves one value must have seen all of its input: pooling of a fixed size, made to
    cover the model's own size exactly, leaves out the border of a larger one without an error.

    Parameters
    ----------
    net : HybridBlock
        The network, not hybridized, with the shapes of its own size.
    model : str
        Its name, for the message.
    size : int
        The side of the input.
    classes : int
        The number of classes.
    context : Context
        A device that holds the network.
    """
    # Not from MXNet's generator, whose numbers would then differ from those of a run without this check.
    noise = np.random.RandomState(0).normal(size=(1, 3, size, size))
    partial: list[gluon.Block] = []

    def check_pooling(pooling: gluon.Block, inputs: Any, output: Any) -> None:
        if output.shape[2:] == (1, 1) and not _is_mean(inputs[0], output):
            partial.append(pooling)

    hooks: list[Any] = []
    net.apply(lambda block: hooks.extend(_hook_average_pooling(block, check_pooling)))
    try:
        fits = net(mx.nd.array(noise, ctx=context)).shape == (1, classes) and not partial
    except (mx.MXNetError, AssertionError, ValueError):
        fits = False
    finally:
        for hook in hooks:
            hook.detach()
    if not fits:
        raise UserError(
            f"--input-size {size}: {model} cannot take images of this size; leave the option out, or choose a --model "
            "that averages over all positions before its last layer, such as a ResNet or a MobileNet"
        )


def _hook_average_pooling(block: gluon.Block, hook: Any) -> list[Any]:
    return [block.register_forward_hook(hook)] if isinstance(block, gluon.nn.AvgPool2D) else []


def _is_mean(inputs: mx.nd.NDArray, output: mx.nd.NDArray) -> bool:
    mean = inputs.asnumpy().mean(axis=(2, 3), keepdims=True)
    return np.allclose(output.asnumpy(), mean, rtol=1e-3, atol=1e-4 * float(np.abs(mean).max()))
