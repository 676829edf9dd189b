"""Parameter groups for MXNet Gluon: per-Block learning rates that hold, and layers that are truly frozen."""

from . import _mxnet as _mxnet  # first: on Python 3.12 it is what makes `import mxnet` work
from . import symbolic as symbolic
from .freezing import freeze, unfreeze
from .groups import ParamGroup
from .optimizers.adamw import AdamW
from .plotting import plot_learning_rates
from .pretrained import LoadReport, load_backbone
from .rate_search import LearningRateSearch, find_learning_rate
from .recipes import (
    discriminative,
    gradual_unfreezing,
    layerwise_decay,
    no_weight_decay,
    stages,
    train_only,
    unfreeze_at,
)
from .saved_run import SavedRun, load_run
from .trainer import MultiLRTrainer
from .weight_average import WeightAverage

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "LearningRateSearch",
    "LoadReport",
    "MultiLRTrainer",
    "ParamGroup",
    "SavedRun",
    "WeightAverage",
    "discriminative",
    "find_learning_rate",
    "freeze",
    "gradual_unfreezing",
    "layerwise_decay",
    "load_backbone",
    "load_run",
    "no_weight_decay",
    "plot_learning_rates",
    "stages",
    "train_only",
    "unfreeze",
    "unfreeze_at",
]
