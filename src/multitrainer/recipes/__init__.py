"""Recipes: functions that make the groups of a network for layer-wise decay, gradual unfreezing and the like.

`stages` finds the stages of a network in its graph, for the recipes to use. Recipes return groups as `groups` defines
them; they set no multiplier and do not depend on the trainer.
"""

from .layer_rates import discriminative, layerwise_decay
from .selection import train_only
from .stages import stages
from .unfreezing import gradual_unfreezing, unfreeze_at
from .weight_decay import no_weight_decay

__all__ = [
    "discriminative",
    "gradual_unfreezing",
    "layerwise_decay",
    "no_weight_decay",
    "stages",
    "train_only",
    "unfreeze_at",
]
