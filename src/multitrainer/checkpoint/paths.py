"""Paths to values in a file, and which paths lead to one object.

The path of an array is the key of its member in the archive. Its components are separated by slashes: the name of a
Parameter or ``@optimizer/name``, and then the indices and dict keys that lead to the array.
"""

from __future__ import annotations

from typing import Any, Iterable
from urllib.parse import quote

import numpy as np
from mxnet.ndarray import NDArray

from ..multipliers.object_state import identical

_MUTABLE = (NDArray, np.ndarray, list, dict)


def component(name: str) -> str:
    """Quote a name for use in a path: a slash in it would separate, and '.npy' would end the name of a member."""
    return quote(name, safe="", errors="surrogatepass").replace(".npy", "%2Enpy")


def key_component(key: Any) -> str:
    """Create the path component for a key of a dict; 1 and '1' give different ones."""
    return component(key) if isinstance(key, str) else f"={key!r}"


def optimizer_path(*names: str, root: str = "@optimizer") -> str:
    """Create the path of an attribute of an optimizer, and of a part of it that belongs to a Parameter."""
    return "/".join([root, *map(component, names)])


def group_optimizer_path(number: int) -> str:
    """Create the path of everything that is saved of an optimizer that a group has of its own."""
    return f"@group_optimizers/{number}"


class SharedPaths:
    """Collects the paths of values as they are saved, and finds those that lead to one array, list or dict."""

    def __init__(self) -> None:
        # By id, which identifies an object only as long as it is alive: hence the reference.
        self._by_id: dict[int, tuple[Any, list[str]]] = {}

    def add(self, path: str, value: Any) -> None:
        """Record that `value` is stored at `path`."""
        self._by_id.setdefault(id(value), (value, []))[1].append(path)

    def groups(self) -> list[list[str]]:
        """List the paths to each object that has more than one; no path is in two groups."""
        seen: set[str] = set()
        groups = []
        for _, paths in self._by_id.values():
            new = [path for path in dict.fromkeys(paths) if path not in seen]
            if len(new) > 1:
                groups.append(new)
                seen.update(new)
        return groups


class SharedValues:
    """Makes values one object again that were one object when they were saved."""

    def __init__(self) -> None:
        self._group_of: dict[str, list[str]] = {}
        self._found: dict[str, Any] = {}

    def set_groups(self, groups: Iterable[list[str]]) -> None:
        """Set which paths lead to one object; see `SharedPaths.groups`."""
        self._group_of = {path: group for group in groups for path in group}

    def resolve(self, path: str, value: Any) -> Any:
        """Record the value that was read at `path`; if an equal one was read in the same group, return that one."""
        first = next((self._found[other] for other in self._group_of.get(path, ()) if other in self._found), None)
        if first is not None and identical(first, value):
            value = first
        if isinstance(value, _MUTABLE):
            self._found[path] = value
        return value
