"""Targets and multipliers as a user writes them: recognize, check, describe and collect them."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from typing import Any, Callable, Collection, Dict, Iterable, Iterator, Union

from mxnet.gluon import Block, Parameter, ParameterDict

from .._mxnet import mark_statistics

Schedule = Callable[[int], float]
Multiplier = Union[float, Schedule]
Parameters = Dict[str, Parameter]

TARGETS = "a Block, a ParameterDict, a dict of name to Parameter, a Parameter, or a list of these"


class Description:
    """Pieces of the user's input in words, which are put together when a message needs them: most input is right.

    Parameters
    ----------
    template : str
        Has a ``{}`` for each piece.
    *pieces
        What `describe` describes.
    """

    def __init__(self, template: str, *pieces: Any) -> None:
        self._template, self._pieces = template, pieces

    def __str__(self) -> str:
        return self._template.format(*map(describe, self._pieces))


Where = Union[str, Description]


def check_multiplier(value: Any, where: Where, template: str = "{}") -> Multiplier:
    """Return a number as a float and a schedule unchanged.

    Raises
    ------
    TypeError, ValueError
        If it is neither; the message begins with ``template``, in which ``where`` is filled in.
    """
    if type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool)):
        number = float(value)
        if math.isfinite(number) and number >= 0:
            return number
        raise ValueError(f"{template.format(where)} must be a finite number >= 0, got {value!r}")
    if callable(value) and not isinstance(value, (type, Block)):
        return value
    raise TypeError(
        f"{template.format(where)} must be a number >= 0 or a schedule (a callable num_update -> number), "
        f"got {describe(value)} of type {type(value).__name__}"
    )


def known_name(name: Any, known: Collection[str], where: Where, holder: str = "this trainer") -> str:
    """Return ``name`` if it is in ``known``, else raise a ValueError that lists the closest names."""
    if name in known:
        return str(name)
    closest = ", ".join(map(repr, closest_names(name, known)))
    raise ValueError(f"{where}: {holder} has no parameter {name!r}; the closest are {closest}")


def closest_names(name: Any, known: Collection[str], limit: int = 3) -> list[str]:
    """Return up to ``limit`` names of ``known`` that resemble ``name``, else the first ones in the alphabet."""
    return difflib.get_close_matches(str(name), known, limit, cutoff=0.4) or sorted(known)[:limit]


def describe(value: Any) -> str:
    """Return a short text for one piece of the user's input."""
    if isinstance(value, Block):
        return f"{type(value).__name__} {value.name!r}"
    if isinstance(value, (float, int)):
        return repr(value)
    if isinstance(value, Parameter):
        return f"Parameter {value.name!r}"
    if isinstance(value, ParameterDict):
        return f"ParameterDict {value.prefix!r} of {len(value.keys())}"
    nested = (Block, Parameter, ParameterDict, list, tuple)
    if isinstance(value, (list, tuple)) and any(isinstance(item, nested) for item in value):
        inner = ", ".join(describe(item) for item in value[:3]) + (", ..." if len(value) > 3 else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if is_parameter_mapping(value):
        return f"dict of {len(value)} Parameters"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def collect(target: Any, where: Where) -> Parameters:
    """Return every Parameter of ``target`` by name, statistics and constants included."""
    found: Parameters = {}
    for param in _parameters_in(target, where):
        if found.setdefault(param.name, param) is not param:
            raise ValueError(
                f"{where}: two different Parameters are called {param.name!r}; give their Blocks different prefix="
            )
    return found


def blocks_of(target: Any) -> Iterator[Block]:
    """Yield the Blocks in a target, but not those inside these Blocks."""
    if isinstance(target, Block):
        yield target
    elif isinstance(target, (list, tuple)):
        for item in target:
            if not isinstance(item, Parameter):
                yield from blocks_of(item)


def is_target(value: Any) -> bool:
    """Whether ``value`` has the form of a target."""
    if isinstance(value, (list, tuple)):
        return all(is_target(item) for item in value)
    return isinstance(value, (Block, ParameterDict, Parameter)) or is_parameter_mapping(value)


def is_parameter_mapping(value: Any) -> bool:
    """Whether ``value`` is a dict of name to Parameter."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Parameter) for item in value.values())


def _parameters_in(target: Any, where: Where) -> Iterable[Parameter]:
    if isinstance(target, Parameter):
        return [target]
    if isinstance(target, (list, tuple)):
        found: list[Parameter] = []
        for item in target:
            if isinstance(item, Parameter):
                found.append(item)
            else:
                found.extend(_parameters_in(item, where))
        return found
    if isinstance(target, Block):
        mark_statistics(target)
        try:
            return target.collect_params().values()
        except AssertionError as error:
            raise ValueError(f"{where}: {error}; give the Blocks different prefix=") from error
    if isinstance(target, ParameterDict) or is_parameter_mapping(target):
        return target.values()
    raise TypeError(f"{where}: {describe(target)} is not a target{_target_hint(target)}; expected {TARGETS}")


def _target_hint(target: Any) -> str:
    if isinstance(target, str):
        return " (names are for set_lr_mult; here pass the Block, or net.collect_params('name'))"
    if isinstance(target, numbers.Real):
        return " (write a multiplier beside its target: [(target, 0.1)]; with wd_mult: ParamGroup)"
    return ""
