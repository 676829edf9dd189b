"""The Module API: a Module's optimizer, the names of its parameters, and who updates them."""

from __future__ import annotations

from typing import Any, Iterator

from mxnet.module import BucketingModule, Module, SequentialModule
from mxnet.optimizer import Optimizer


def modules_inside(module: Any) -> Iterator[Module]:
    """Yield every Module with an optimizer of its own: those of a chain, the buckets, or ``module`` itself."""
    if isinstance(module, SequentialModule):
        for part in module._modules:
            yield from modules_inside(part)
    elif isinstance(module, BucketingModule):
        yield from module._buckets.values()
    elif isinstance(module, Module):
        yield module


def module_optimizer(module: Module) -> Optimizer:
    """Return the Optimizer of ``module``."""
    return module._optimizer


def updates_on_servers(module: Module) -> bool:
    """Whether parameter servers update, with a pickled copy of the optimizer."""
    return bool(module._update_on_kvstore) and "dist" in module._kvstore.type


def module_parameters(module: Module) -> list[str]:
    """Return the names of the parameters of ``module`` in its order, including fixed ones."""
    return list(module._param_names)


def fixed_parameters(module: Module) -> set[str]:
    """Return the names of the parameters that ``module`` never updates."""
    return set(module._fixed_param_names)


def names_by_index(module: Module) -> dict[int, str]:
    """Return the parameter's name for each index that ``module`` updates; empty if a kvstore updates by name."""
    if module._update_on_kvstore:
        return {}
    devices = len(module._context)
    return {i * devices + k: name for i, name in enumerate(module._param_names) for k in range(devices)}
