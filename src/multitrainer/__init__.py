"""Parameter groups for MXNet Gluon: per-Block learning rates that hold, and layers that are truly frozen."""

from . import _mxnet as _mxnet  # first: on Python 3.12 it is what makes `import mxnet` work
from . import symbolic as symbolic
from .freezing import freeze, unfreeze
from .groups import ParamGroup
from .trainer import MultiLRTrainer

__version__ = "0.1.0"

__all__ = ["MultiLRTrainer", "ParamGroup", "freeze", "unfreeze"]
