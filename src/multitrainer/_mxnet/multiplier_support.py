"""Does an optimizer apply a multiplier? Its update must read the multiplier for that."""

from __future__ import annotations

import functools
import types
from typing import Any

from mxnet.optimizer import Optimizer


@functools.lru_cache(maxsize=None)
def supports_multiplier(optimizer: Any, field: str) -> bool:
    """Whether the update of an Optimizer class leads to a look-up of ``field``, by the names that its code mentions."""
    wanted = {f"_get_{field[:2]}", f"_get_{field[:2]}s", field}
    functions = [optimizer.update, optimizer.update_multi_precision]
    if optimizer.update is Optimizer.update:
        return True  # none at all, or a name that MXNet does not know: its own error says so
    if any(not isinstance(function, types.FunctionType) for function in functions):
        return True  # compiled: it cannot be read, so it gets the benefit of the doubt
    seen = {Optimizer.update, Optimizer._update_count}
    while functions:
        function = functions.pop()
        if function in seen:
            continue
        seen.add(function)
        if _names_in(function.__code__) & wanted:
            return True
        functions += _functions_mentioned(optimizer, function)
    return False


def _functions_mentioned(optimizer: Any, function: types.FunctionType) -> list[types.FunctionType]:
    """Return the functions that ``function`` may call: methods, those of base classes too, helpers and closures."""
    mentioned = _names_in(function.__code__)
    found = [cell.cell_contents for cell in function.__closure__ or ()]
    modules = []
    for name in mentioned:
        # A method that mentions its own name, or super, calls up the hierarchy.
        upwards = name == function.__name__ or "super" in mentioned
        kinds = optimizer.__mro__ if upwards else [kind for kind in optimizer.__mro__ if name in vars(kind)][:1]
        found += [vars(kind)[name] for kind in kinds if name in vars(kind)]
        value = function.__globals__.get(name)
        found.append(value)
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] not in ("mxnet", "numpy"):
            modules.append(value)
    found += [vars(module)[name] for module in modules for name in mentioned if name in vars(module)]
    found = [getattr(value, "__func__", getattr(value, "fget", value)) for value in found]
    return [value for value in found if isinstance(value, types.FunctionType)]


def _names_in(code: types.CodeType) -> set[str]:
    """Return every attribute and global that a function mentions, functions inside it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
