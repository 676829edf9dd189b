"""`load_backbone`: load the weights of another network as far as they fit."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import mxnet as mx
from mxnet.gluon import Block, Parameter

from . import _mxnet
from .groups.targets import closest_names, collect, describe

_LISTED = 5  # names of a kind that a report prints


@dataclass(frozen=True)
class LoadReport:
    """What `load_backbone` loaded, and what it left out. Printed, it lists the names.

    Attributes
    ----------
    source : str
        The file and the network, with the part of either that was matched, such as ``features.``.
    loaded : tuple of str
        The Parameters that got the values of the file, by attribute path, such as ``features.0.weight``.
    other_shape : dict of str to tuple
        Parameters whose shape differs: the shape in the file, and that in the network, 0 if still unknown.
    unknown_shape : tuple of str
        Parameters after one in ``other_shape`` of which no dimension is known yet: whether they fit is unknown.
    not_in_file : tuple of str
        Parameters that the file does not have, or under another number that does not tell which layer it is.
    not_in_network : tuple of str
        Arrays of the file that the network does not have, by their names in the file; of a shared Parameter, those
        that differ from the one that was loaded.
    head : tuple of str
        Parameters of the ``head`` that was named, which keep their values.

    Examples
    --------
    >>> import os, tempfile
    >>> import mxnet as mx
    >>> from multitrainer import load_backbone
    >>> net = mx.gluon.nn.Dense(2, in_units=3)
    >>> net.initialize()
    >>> fname = os.path.join(tempfile.mkdtemp(), 'dense.params')
    >>> mx.nd.save(fname, {'weight': mx.nd.ones((2, 3)), 'bias': mx.nd.ones(5)})
    >>> report = load_backbone(net, fname)
    >>> report.loaded, report.other_shape
    (('weight',), {'bias': ((5,), (2,))})
    """

    source: str
    loaded: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unknown_shape: tuple[str, ...]
    not_in_file: tuple[str, ...]
    not_in_network: tuple[str, ...]
    head: tuple[str, ...]

    @property
    def left_out(self) -> dict[str, str]:
        """All Parameters of the network that keep their values, each with the reason."""
        shapes = self.other_shape.items()
        return {
            **{name: f"shape {there} in the file, {here} in the network" for name, (there, here) in shapes},
            **dict.fromkeys(self.unknown_shape, "shape unknown: run one forward pass first"),
            **dict.fromkeys(self.not_in_file, "not in the file"),
            **dict.fromkeys(self.head, "part of the head"),
        }

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.left_out)} Parameters, {self.source}"]
        for reason, names in (
            ("other shape", [f"{name} {there} instead of {here}" for name, (there, here) in self.other_shape.items()]),
            ("shape unknown (run one forward pass first)", self.unknown_shape),
            ("not in the file", self.not_in_file),
            ("not in the network", self.not_in_network),
            ("part of the head", self.head),
        ):
            if names:
                more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                lines.append(f"  {reason}: {', '.join(names[:_LISTED])}{more}")
        return "\n".join(lines)


def load_backbone(net: Block, fname: str | os.PathLike[str], ctx: Any = None, head: Any = None) -> LoadReport:
    """Load from a parameter file whatever fits a network by name and shape, and report the rest.

    The head is loaded too if it fits; ``head=`` leaves it out.

    Parameters
    ----------
    net : Block
        Initialized or not, also with shapes that are still unknown; see the notes.
    fname : str or PathLike
        A file of ``save_parameters``, ``collect_params().save``, ``export`` or a Module's checkpoint.
    ctx : Context or list of Context, optional
        Where to create Parameters that are not initialized, as for ``load_parameters``: by default on the CPU. Others
        stay where they are.
    head : target, optional
        Parameters that keep their values, even if those in the file fit: the output layer of another task.

    Returns
    -------
    LoadReport
        What was loaded, and what was left out: of another or unknown shape, not in the file, not in the network.

    Raises
    ------
    OSError
        If there is no such file.
    TypeError, ValueError
        Before anything has changed: if the file cannot be read or has no names, if nothing in it fits, with a shape
        that differs or the closest names, or if several parts of the file or of ``net`` fit equally well; if ``head``
        is not part of ``net``, or ``ctx`` is not where its initialized Parameters are.

    Notes
    -----
    *Names.* Attribute paths (``features.0.weight``) and Parameter names (``resnetv10_conv0_weight``) are found by
    themselves. The file may also be of a whole network of which ``net`` is a part, or of a part of ``net``, if all of
    the part is there. If Parameter names begin with other numbers, because Gluon numbers networks and layers in the
    order in which a process makes them, they are paired in that order. If the file has more or fewer of a kind, only
    the same numbers are paired, and only if they are the first ones or their shapes fit better than in that order.

    *Shared Parameters* get the first of their arrays that fits.

    *Unknown shapes.* Before its first forward pass, a network does not know all dimensions. An array of any size fits
    those; a wrong size of a matrix is an error in the forward pass. A BatchNorm layer without ``in_channels`` knows no
    dimension at all, and MXNet does not notice a wrong one. So a Parameter of which no dimension is known is left out
    if one before it, in the order in which the network defines its layers, has another shape in the file, which may
    then be of another width. Run one forward pass first; or name the ``head`` if it is defined first.

    *Values* are cast to the dtype of the Parameter, as by ``load_parameters(cast_dtype=True)``. Nothing else of a
    Parameter changes: ``grad_req`` and multipliers stay, and so do traces. Create the trainer before or after; if a
    kvstore updates, it gets the new values, as from ``load_parameters``.

    Examples
    --------
    >>> import os, tempfile
    >>> import mxnet as mx
    >>> from multitrainer import load_backbone
    >>> make = lambda classes: mx.gluon.model_zoo.vision.mobilenet_v2_0_25(classes=classes)
    >>> fname, trained = os.path.join(tempfile.mkdtemp(), 'net.params'), make(10)
    >>> trained.initialize()
    >>> _ = trained(mx.nd.zeros((1, 3, 32, 32)))
    >>> trained.save_parameters(fname)
    >>> net = make(3)
    >>> net.initialize()
    >>> report = load_backbone(net, fname)
    >>> report.left_out
    {'output.0.weight': 'shape (10, 1280, 1, 1) in the file, (3, 0, 1, 1) in the network'}
    """
    match = match_file(net, fname, head)
    if not match.arrays:
        raise ValueError(f"nothing in {fname} fits {describe(net)}: {_why_nothing_fits(net, match)}")
    match.load(ctx)
    return match.report


@dataclass(frozen=True)
class Match:
    """The arrays of a file that fit a network, not yet loaded, and the report of the rest."""

    arrays: dict[Parameter, mx.nd.NDArray]
    file_names: Sequence[str]
    report: LoadReport

    def load(self, ctx: Any = None) -> None:
        """Load the arrays; raise a ValueError if ``ctx`` is not where the Parameters are."""
        wanted = None if ctx is None else set([ctx] if isinstance(ctx, mx.Context) else ctx)
        for param in self.arrays:
            there = _mxnet.contexts(param)
            if wanted and there and set(there) != wanted:
                raise ValueError(
                    f"ctx is {ctx}, but Parameter {param.name!r} is initialized on {there}; leave ctx out, or call "
                    "net.collect_params().reset_ctx first"
                )
        arrays = {param: array.astype(param.dtype) for param, array in self.arrays.items()}
        mx.nd.waitall()  # no error of a conversion can come after the first value is set
        for param, array in arrays.items():
            _mxnet.load_values(param, array, ctx)


def match_file(net: Block, fname: str | os.PathLike[str], head: Any = None) -> Match:
    """Find what in a parameter file fits a network; see `load_backbone`."""
    if not isinstance(net, Block):
        raise TypeError(f"expected a network, which is a Block, got {describe(net)}")
    paths = _mxnet.parameters_by_path(net)
    if not paths:
        raise ValueError(f"{describe(net)} has no Parameters")
    kept = {} if head is None else dict.fromkeys(collect(head, "head").values())
    foreign = [param.name for param in kept if param not in set(paths.values())]
    if foreign:
        raise ValueError(f"head: {describe(net)} does not hold {', '.join(foreign[:3])}; name a part of the network")
    arrays = _read(Path(fname))
    chosen = _best_choice(net, paths, arrays, set(kept))
    names = chosen.names
    known = set(names.values())
    found, loaded, other_shape, unknown, missing = {}, [], {}, [], []
    by_param = _paths_by_param(paths)
    for param, own in by_param.items():
        present = [names[path] for path in own if names[path] in arrays]
        fitting = [name for name in present if _fits(arrays[name], param)]
        if param in kept:
            continue
        if not present:
            missing.append(own[0])
        elif not fitting:
            other_shape[own[0]] = (arrays[present[0]].shape, tuple(param.shape))
        elif other_shape and not any(size > 0 for size in param.shape or ()):
            unknown.append(own[0])  # MXNet would not notice a BatchNorm of another width
        else:
            found[param] = arrays[fitting[0]]
            loaded.append(own[0])
            known -= {name for name in present if not _same(arrays[name], found[param])}
    report = LoadReport(
        source=f"{fname}{chosen.part_of_file and f', {chosen.part_of_file}'} -> "
        f"{chosen.part_of_net and f'{chosen.part_of_net} of '}{describe(net)}",
        loaded=tuple(loaded),
        other_shape=other_shape,
        unknown_shape=tuple(unknown),
        not_in_file=tuple(missing),
        not_in_network=tuple(name for name in arrays if name not in known),
        head=tuple(own[0] for param, own in by_param.items() if param in kept),
    )
    return Match(found, tuple(arrays), report)


def _paths_by_param(paths: dict[str, Parameter]) -> dict[Parameter, list[str]]:
    by_param: dict[Parameter, list[str]] = defaultdict(list)  # a shared Parameter has several paths
    for path, param in paths.items():
        by_param[param].append(path)
    return by_param


def _why_nothing_fits(net: Block, match: Match) -> str:
    if match.report.other_shape:
        name, (there, here) = next(iter(match.report.other_shape.items()))
        return f"names agree, but shapes do not, such as that of {name}: {there} in the file, {here} in the network"
    names, params = list(match.file_names), _mxnet.parameters_by_path(net)
    numbered = _numbered(param.name for param in params.values())
    for stem, layers in _numbered(names).items():
        own = numbered.get(stem, [])
        if own and len(own) != len(layers):
            return (
                f"the file has {len(layers)} layers that are numbered as {', '.join(layers[:3])}, the network "
                f"{len(own)}, as {', '.join(own[:3])}, and neither numbers nor shapes tell which is which. Pass the "
                "network that was saved as a whole, or a file of save_parameters, which goes by attribute path"
            )
    paths = list(params)
    return (
        f"it has {len(names)} arrays, such as {', '.join(closest_names(paths[0], names)) or 'none'}, and the network "
        f"{', '.join(paths[:3])}, ... A file of save_parameters goes by attribute path, so the attributes must have "
        "the same names"
    )


def _read(path: Path) -> dict[str, mx.nd.NDArray]:
    """Read a parameter file; names are without the kinds that ``export`` and Module write before them."""
    if not path.exists():
        raise FileNotFoundError(f"{path} cannot be read as MXNet parameters: there is no such file")
    try:
        loaded = mx.nd.load(str(path))
    except Exception as error:  # a damaged storage type is a bare one
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ValueError(
            f"{path} cannot be read as MXNet parameters: it is damaged or something else ({reason})"
        ) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds arrays without names, not parameters")
    return {re.sub("^(arg|aux):", "", name): array for name, array in loaded.items()}


def _fits(array: mx.nd.NDArray, param: Parameter) -> bool:
    own = param.shape
    if own is None:  # a SymbolBlock may not even know the number of dimensions
        return True
    return len(own) == len(array.shape) and all(size in (there, 0, -1) for size, there in zip(own, array.shape))


def _same(one: mx.nd.NDArray, other: mx.nd.NDArray) -> bool:
    return one is other or (one.shape == other.shape and one.asnumpy().tobytes() == other.asnumpy().tobytes())


@dataclass(frozen=True)
class _Choice:
    """A name in the file for each path of the network, and the part of either in which they were found."""

    names: dict[str, str]
    part_of_file: str = ""
    part_of_net: str = ""

    def __str__(self) -> str:
        if self.part_of_file:
            return f"{self.part_of_file!r} of the file"
        return f"{self.part_of_net!r} of the network" if self.part_of_net else "the names as they are"

    def fitting(self, paths: dict[str, Parameter], arrays: dict[str, mx.nd.NDArray]) -> dict[str, str]:
        return {path: name for path, name in self.names.items() if name in arrays and _fits(arrays[name], paths[path])}


def _best_choice(
    net: Block, paths: dict[str, Parameter], arrays: dict[str, mx.nd.NDArray], kept: set[Parameter]
) -> _Choice:
    """Return the choice that fits most; raise a ValueError if another one fits as well and loads other values."""
    has_paths = any("." in name for name in arrays)
    choices = list(_by_path(paths, arrays) if has_paths else _by_name(net, paths, arrays))
    fitting = [choice.fitting(paths, arrays) for choice in choices]
    most = max(map(len, fitting))

    def loaded(names: dict[str, str]) -> dict[Parameter, mx.nd.NDArray]:
        first = {paths[path]: arrays[name] for path, name in reversed(list(names.items()))}
        return {param: array for param, array in first.items() if param not in kept}

    best, *others = [(choice, loaded(names)) for choice, names in zip(choices, fitting) if len(names) == most]
    tied = [
        choice
        for choice, values in others
        if values.keys() != best[1].keys() or not all(_same(values[param], best[1][param]) for param in values)
    ]
    if tied:
        raise ValueError(
            f"{describe(net)}: {', '.join(map(str, [best[0], *tied[:_LISTED]]))} fit equally well, so which to load is "
            f"unknown; pass {'the part that was saved' if tied[0].part_of_net else 'the whole network that was saved'}"
        )
    return best[0]


def _by_path(paths: dict[str, Parameter], arrays: dict[str, mx.nd.NDArray]) -> Iterator[_Choice]:
    """Yield the paths themselves, then below each part of the file or of the network that the other one equals."""
    yield _Choice({path: path for path in paths})
    if all(path in arrays and _fits(arrays[path], param) for path, param in paths.items()):
        return
    for part in _parts(arrays):
        if all(part + path in arrays for path in paths):
            yield _Choice({path: part + path for path in paths}, part_of_file=part)
    for part in _parts(paths):
        if all(part + name in paths for name in arrays):
            names = {path: path[len(part) :] if path.startswith(part) else "" for path in paths}
            yield _Choice(names, part_of_net=part)


def _parts(paths: Any) -> list[str]:
    """Return ``a.``, ``a.b.`` and so on for every path ``a.b.c``."""
    return list(dict.fromkeys(path[: dot.end()] for path in paths for dot in re.finditer(r"\.", path)))


def _by_name(net: Block, paths: dict[str, Parameter], arrays: dict[str, mx.nd.NDArray]) -> Iterator[_Choice]:
    """Yield the Parameters' names, with the numbers of the file, also with another prefix than the network's."""
    own = {path: param.name for path, param in paths.items()}
    yield _Choice(_renumbered(own, paths, arrays))
    yield _Choice({path: path for path in paths})  # that of a single layer has no dot either
    bare = {path: name[len(net.prefix) :] if name.startswith(net.prefix) else name for path, name in own.items()}
    some = next(iter(arrays), "")
    starts = (some[: place.end()] for place in re.finditer("_", some))
    for prefix in ["", *(start for start in starts if all(name.startswith(start) for name in arrays))]:
        below = {name[len(prefix) :]: array for name, array in arrays.items()}
        names = _renumbered(bare, paths, below)
        yield _Choice({path: name and prefix + name for path, name in names.items()}, part_of_file=prefix)


def _renumbered(names: dict[str, str], paths: dict[str, Parameter], arrays: dict[str, mx.nd.NDArray]) -> dict[str, str]:
    """Return the names with the numbers that their first parts have in the file; empty if nothing tells which."""

    def rename(pairs: dict[str, str]) -> dict[str, str]:
        return {
            path: pairs[first] and pairs[first] + name[len(first) :] if first in pairs else name
            for path, name, first in ((path, name, _first_part(name)) for path, name in names.items())
        }

    def count(pairs: dict[str, str]) -> int:
        others = dict.fromkeys(map(_first_part, names.values()), "")
        return len(_Choice(rename({**others, **pairs})).fitting(paths, arrays))

    there, renamed = _numbered(arrays), {}
    for stem, here in _numbered(names.values()).items():
        renamed.update({**dict.fromkeys(here, ""), **_paired(here, there.get(stem, []), count)})
    return rename(renamed)


def _paired(here: list[str], there: list[str], count: Callable[[dict[str, str]], int]) -> dict[str, str]:
    """Pair in order; the same numbers must fit better, or be the first ones if the file has more or fewer."""
    same = {first: first for first in here if first in there}
    in_order = dict(zip(here, there))
    from_the_end = dict(zip(here[::-1], there[::-1]))
    if same == in_order or count(same) > max(count(in_order), count(from_the_end)):
        return same
    return in_order if len(here) == len(there) else {}


def _first_part(name: str) -> str:
    return re.sub("(?<=[^_])_.*", "", name, flags=re.DOTALL)


def _numbered(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the first parts of names that end in a number, by what precedes it, in the order of the numbers."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for first in set(map(_first_part, names)):
        number = re.search("[0-9]+$", first)
        if number:
            found[first[: number.start()]].append((int(number[0]), first))
    return {stem: [first for _, first in sorted(parts)] for stem, parts in found.items()}
