"""Find out whether an optimizer applies a multiplier, by reading the byte code of its update.

Every part of the package asks here. The optimizer does not run, so neither its state nor its weights can change.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from mxnet.optimizer import Optimizer


@functools.lru_cache(maxsize=None)
def supports_multiplier(optimizer: Any, field: str) -> bool:
    """Whether the update of an Optimizer class looks up ``field``, ``lr_mult`` or ``wd_mult``, or calls what does.

    The names in the byte code of the update are followed through its methods, base classes and helper functions. An
    update that cannot be read, because it is compiled, counts as applying the multiplier.
    """
    wanted = {f"_get_{field[:2]}", f"_get_{field[:2]}s", field}
    functions = [optimizer.update, optimizer.update_multi_precision]
    if optimizer.update is Optimizer.update:
        return True  # there is no update; MXNet raises an error of its own
    if any(not isinstance(function, types.FunctionType) for function in functions):
        return True  # compiled code
    seen = {Optimizer.update, Optimizer._update_count}
    while functions:
        function = functions.pop()
        if function in seen:
            continue
        seen.add(function)
        if _names_in(function.__code__) & wanted:
            return True
        functions += _mentioned_functions(optimizer, function)
    return False


def _mentioned_functions(optimizer: Any, function: types.FunctionType) -> list[types.FunctionType]:
    """Return the functions that ``function`` may call: methods, those of base classes too, helpers and closures."""
    mentioned = _names_in(function.__code__)
    found = [cell.cell_contents for cell in function.__closure__ or ()]
    modules = []
    for name in mentioned:
        # A method that mentions its own name, or super, may call that of a base class.
        calls_base = name == function.__name__ or "super" in mentioned
        kinds = optimizer.__mro__ if calls_base else [kind for kind in optimizer.__mro__ if name in vars(kind)][:1]
        found += [vars(kind)[name] for kind in kinds if name in vars(kind)]
        value = function.__globals__.get(name)
        found.append(value)
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] not in ("mxnet", "numpy"):
            modules.append(value)
    found += [vars(module)[name] for module in modules for name in mentioned if name in vars(module)]
    found = [getattr(value, "__func__", getattr(value, "fget", value)) for value in found]
    return [value for value in found if isinstance(value, types.FunctionType)]


def _names_in(code: types.CodeType) -> set[str]:
    """Return the names of all attributes and globals in a function's code, and in functions inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
