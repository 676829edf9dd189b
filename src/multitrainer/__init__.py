"""Parameter groups for MXNet Gluon: per-Block learning rates that hold, and layers that are truly frozen.

MXNet is imported when a name of the package is first used, so that `use_all_cores` can be called before. From then on,
or from ``import mxnet`` on, MXNet knows the optimizer ``'adamw'``.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from .cores import use_all_cores
from .importing import prepare_import

if TYPE_CHECKING:
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
        train_only,
        unfreeze_at,
    )
    from .recipes.stages import stages
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
    "use_all_cores",
]

_MODULES = {
    **dict.fromkeys(["freeze", "unfreeze"], "freezing"),
    "ParamGroup": "groups",
    "AdamW": "optimizers.adamw",
    "plot_learning_rates": "plotting",
    **dict.fromkeys(["LoadReport", "load_backbone"], "pretrained"),
    **dict.fromkeys(["LearningRateSearch", "find_learning_rate"], "rate_search"),
    **dict.fromkeys(["discriminative", "gradual_unfreezing", "layerwise_decay", "no_weight_decay"], "recipes"),
    **dict.fromkeys(["stages", "train_only", "unfreeze_at"], "recipes"),
    **dict.fromkeys(["SavedRun", "load_run"], "saved_run"),
    "MultiLRTrainer": "trainer",
    "WeightAverage": "weight_average",
}


if not TYPE_CHECKING:  # a type checker that sees __getattr__ takes any name for a public one

    def __getattr__(name: str) -> Any:
        """Import a public name, or a module of the package, when it is first used (PEP 562)."""
        if name in _MODULES:
            importlib.import_module("mxnet")  # before any lock of a module here: MXNet's import takes that of AdamW
            value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
            globals()[name] = value
            return value
        if _may_be_module(name):
            try:
                return importlib.import_module(f".{name}", __name__)
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _may_be_module(name: str) -> bool:
    """Tell whether to look for a module; horovod needs an extra, and `hasattr` must not raise its ImportError."""
    return name.isidentifier() and not name.startswith("__") and name != "horovod"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "symbolic"})


def _register_adamw() -> None:
    """Register AdamW with MXNet, unless a thread is about to, which may wait until this import has ended."""
    if f"{__name__}.optimizers.adamw" not in sys.modules:
        try:
            importlib.import_module(".optimizers.adamw", __name__)
        except RuntimeError as error:
            if type(error).__name__ != "_DeadlockError":  # Python's: that thread holds the lock of the module
                raise


prepare_import(_register_adamw)
if os.environ.get("DMLC_ROLE") in ("scheduler", "server"):
    importlib.import_module("mxnet")  # serves while it is imported, until the workers are done; then the process ends
