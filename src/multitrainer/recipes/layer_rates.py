"""Learning rates that grow from the input to the output: layer by layer, or stage by stage."""

from __future__ import annotations

import math
from typing import Any

from ..groups.param_group import ParamGroup
from ..groups.targets import check_multiplier, describe
from .layers import named_layers, named_stages


def layerwise_decay(blocks_or_net: Any, decay: float, head: float = 1.0) -> list[ParamGroup]:
    """Give each layer a lower learning rate than the layer after it, by a constant factor.

    Parameters
    ----------
    blocks_or_net : Block or list of targets
        A network, which is divided into stages and these into layers (a residual Block is one layer); or the layers,
        from input to output. Only if a network is given is it certain that no parameter is left out.
    decay : float
        The factor from one layer to the one before it, in (0, 1].
    head : float
        The multiplier of the last layer, above 0.

    Returns
    -------
    list of ParamGroup
        From input to output, named ``stage3 layer2``, or ``stage6`` if a stage has one layer. The last one's
        ``lr_mult`` is ``head``, each earlier one's ``decay`` times the next one's.

    Raises
    ------
    TypeError, ValueError
        If a number is not in its range, or makes a multiplier so small that it becomes 0; if the network cannot be
        ordered (see `stages`); if the list is empty, or holds a value that is not a target, a target without
        parameters, or the same parameter twice.

    Notes
    -----
    Layer-wise decay is part of ULMFiT's and ELECTRA's fine-tuning. For images, BEiT uses it (Bao et al. 2022,
    arXiv:2106.08254), and ``param_groups_layer_decay`` in timm/optim/_param_groups.py.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer, layerwise_decay, no_weight_decay
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1()
    >>> net.initialize()
    >>> groups = layerwise_decay(net, 0.5)
    >>> [(group.name, group.lr_mult) for group in groups[-4:]]
    [('stage4 layer2', 0.125), ('stage5 layer1', 0.25), ('stage5 layer2', 0.5), ('stage6', 1.0)]
    >>> trainer = MultiLRTrainer([*groups, no_weight_decay(net)], 'sgd', {'learning_rate': 0.1, 'wd': 1e-4})
    """
    decay, head = _positive(decay, "decay"), _positive(head, "head")
    if decay > 1:
        raise ValueError(f"decay must be at most 1, got {decay!r}: layers near the input would learn fastest")
    layers = named_layers(blocks_or_net)
    multipliers = [head * decay**distance for distance in reversed(range(len(layers)))]
    if multipliers[0] == 0:
        raise ValueError(
            f"decay {decay!r} over {len(layers)} layers makes the first multiplier 0, which would freeze it"
        )
    return [layer.group(multiplier) for layer, multiplier in zip(layers, multipliers)]


def discriminative(blocks_or_net: Any, lowest: float, highest: float) -> list[ParamGroup]:
    """Give each stage a higher learning rate than the stage before it, by equal factors from lowest to highest.

    Parameters
    ----------
    blocks_or_net : Block or list of targets
        A network, which is divided into stages; or the stages, from input to output.
    lowest, highest : float
        The multipliers of the first and of the last stage, above 0.

    Returns
    -------
    list of ParamGroup
        From input to output, named ``stage3``. A single stage gets ``highest``.

    Raises
    ------
    TypeError, ValueError
        As `layerwise_decay` does; if ``lowest`` is above ``highest``.

    Notes
    -----
    Discriminative fine-tuning of ULMFiT (Howard and Ruder 2018, arXiv:1801.06146); fastai writes
    ``slice(lowest, highest)``.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import discriminative
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1()
    >>> [(group.name, round(group.lr_mult, 4)) for group in discriminative(net, 0.01, 1)][::2]
    [('stage1', 0.01), ('stage3', 0.0631), ('stage5', 0.3981)]
    """
    lowest, highest = _positive(lowest, "lowest"), _positive(highest, "highest")
    if lowest > highest:
        raise ValueError(f"lowest must not be above highest, got {lowest!r} and {highest!r}")
    stages = named_stages(blocks_or_net)
    last = len(stages) - 1
    between = [math.exp(math.log(lowest) + (math.log(highest) - math.log(lowest)) * i / last) for i in range(1, last)]
    multipliers = [lowest, *between, highest] if last else [highest]
    return [stage.group(multiplier) for stage, multiplier in zip(stages, multipliers)]


def _positive(value: Any, where: str) -> float:
    number = check_multiplier(value, where)
    if callable(number):
        raise TypeError(f"{where} must be a number, got {describe(value)}")
    if number == 0:
        raise ValueError(f"{where} must be above 0, got {value!r}; to freeze a layer, give it a multiplier of 0")
    return number
