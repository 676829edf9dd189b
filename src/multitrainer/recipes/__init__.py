"""Groups that people make of a network: layer-wise decay and the others, and the stages they are made from."""

from .layer_rates import discriminative, layerwise_decay
from .stages import stages
from .unfreezing import gradual_unfreezing, unfreeze_at
from .weight_decay import no_weight_decay

__all__ = ["discriminative", "gradual_unfreezing", "layerwise_decay", "no_weight_decay", "stages", "unfreeze_at"]
