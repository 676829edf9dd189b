"""Name groups for tables and logs."""

from __future__ import annotations

from collections import Counter
from typing import Any, Mapping, Sequence

from mxnet.gluon import Block, Parameter, ParameterDict

from .._mxnet import children
from .param_group import ParamGroup


def group_names(groups: Sequence[ParamGroup], blocks: Sequence[Block], taken: Sequence[str] = ()) -> list[str]:
    """Return a unique name for each group, none of which is ``taken``.

    It is the name that the user gave, else the attribute path of the target from one of ``blocks``, else Gluon's name.
    """
    by_user = [group.name for group in groups if group.name is not None and group.root is None]
    for name, count in Counter(by_user).items():
        if count > 1:
            raise ValueError(f"two ParamGroups are named {name!r}; names must differ")
        if name in taken:
            raise ValueError(f"this trainer has a group {name!r} already; names must differ")
    paths = attribute_paths(blocks)
    uses = dict.fromkeys([*taken, *by_user], 1)
    names = []
    for group in groups:
        if group.name is None:
            names.append(_unused_name(_default_names(group.params, paths), uses))
        elif group.root is None:
            names.append(group.name)
        else:  # made by a recipe: two networks may both have a stage1
            names.append(_unused_name([group.name, f"{group.root.name} {group.name}"], uses))
    return names


def _unused_name(candidates: Sequence[str], uses: dict[str, int]) -> str:
    """Return the first candidate that is not in use, else the last one with a number; count it in ``uses``."""
    last = candidates[-1]
    name = next((name for name in candidates if name not in uses), last)
    while name in uses:
        uses[last] += 1
        name = f"{last}#{uses[last]}"
    uses[name] = 1
    return name


def _default_names(target: Any, paths: Mapping[Block, str]) -> list[str]:
    """Return the names that a group of ``target`` can have by default, the best one first."""
    if isinstance(target, Block):
        return ([paths[target]] if target in paths else []) + [target.name or type(target).__name__.lower()]
    if isinstance(target, ParameterDict):
        return [target.prefix.rstrip("_") or "parameters"]
    if isinstance(target, Parameter):
        return [target.name]
    if isinstance(target, (list, tuple)) and not all(isinstance(item, Parameter) for item in target):
        first = _default_names(target[0], paths)
        return first if len(target) == 1 else [f"{name}+{len(target) - 1}" for name in first]
    return ["parameters"]


def attribute_paths(blocks: Sequence[Block]) -> dict[Block, str]:
    """Return the attribute path of each Block inside ``blocks``, from the outermost one that contains it."""
    paths: dict[Block, list[str]] = {}

    def visit(block: Block, path: list[str]) -> None:
        for name, child in children(block):
            if len(path) >= len(paths.get(child, [])):
                paths[child] = [*path, name]
                visit(child, paths[child])

    for block in blocks:
        visit(block, [])
    return {block: ".".join(path) for block, path in paths.items()}
