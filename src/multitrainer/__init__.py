"""Parameter groups for MXNet Gluon: per-Block learning rates that hold, and layers that are truly frozen."""

from . import _mxnet as _mxnet  # first: on Python 3.12 it is what makes `import mxnet` work
from . import symbolic as symbolic
from .freezing import freeze, unfreeze
from .groups import ParamGroup
from .plotting import plot_learning_rates
from .rate_search import LearningRateSearch, find_learning_rate
from .recipes import discriminative, gradual_unfreezing, layerwise_decay, no_weight_decay, stages, unfreeze_at
from .trainer import MultiLRTrainer

__version__ = "0.1.0"

__all__ = [
    "LearningRateSearch",
    "MultiLRTrainer",
    "ParamGroup",
    "discriminative",
    "find_learning_rate",
    "freeze",
    "gradual_unfreezing",
    "layerwise_decay",
    "no_weight_decay",
    "plot_learning_rates",
    "stages",
    "unfreeze",
    "unfreeze_at",
]
