"""Name groups for tables and logs."""

from __future__ import annotations

from collections import Counter
from typing import Any, Mapping, Sequence

from mxnet.gluon import Block, Parameter, ParameterDict

from .._mxnet import children
from .param_group import ParamGroup


def group_names(groups: Sequence[ParamGroup], blocks: Sequence[Block]) -> list[str]:
    """Name every group: as the user did, else by the path from a Block that contains it, else by Gluon's name."""
    given = [group.name for group in groups if group.name is not None and group.within is None]
    for name, count in Counter(given).items():
        if count > 1:
            raise ValueError(f"two ParamGroups are named {name!r}; names must differ")
    paths = _paths(blocks)
    taken = dict.fromkeys(given, 1)  # name -> how often it was asked for
    names = []
    for group in groups:
        if group.name is not None and group.within is not None:  # a recipe's: two networks may both have a stage1
            names.append(_unused([group.name, f"{group.within.name} {group.name}"], taken))
        else:
            names.append(group.name or _unused(_derived(group.params, paths), taken))
    return names


def _unused(candidates: Sequence[str], taken: dict[str, int]) -> str:
    """Return the first candidate that is free, else the last one with a number; note it as taken."""
    name = next((name for name in candidates if name not in taken), candidates[-1])
    while name in taken:
        taken[candidates[-1]] += 1
        name = f"{candidates[-1]}#{taken[candidates[-1]]}"
    taken[name] = 1
    return name


def _derived(target: Any, paths: Mapping[Block, str]) -> list[str]:
    """Return names for a group without one, best first."""
    if isinstance(target, Block):
        return ([paths[target]] if target in paths else []) + [target.name or type(target).__name__.lower()]
    if isinstance(target, ParameterDict):
        return [target.prefix.rstrip("_") or "parameters"]
    if isinstance(target, Parameter):
        return [target.name]
    if isinstance(target, (list, tuple)) and not all(isinstance(item, Parameter) for item in target):
        first = _derived(target[0], paths)
        return first if len(target) == 1 else [f"{name}+{len(target) - 1}" for name in first]
    return ["parameters"]


def _paths(blocks: Sequence[Block]) -> dict[Block, str]:
    """Return the attribute path of every Block below one of ``blocks``, from the outermost that holds it."""
    paths: dict[Block, list[str]] = {}

    def visit(block: Block, path: list[str]) -> None:
        for name, child in children(block):
            if len(path) >= len(paths.get(child, [])):
                paths[child] = [*path, name]
                visit(child, paths[child])

    for block in blocks:
        visit(block, [])
    return {block: ".".join(path) for block, path in paths.items()}
