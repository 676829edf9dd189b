"""The division of a folder into training and validation as a run records it, to resume on the same images."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path, PurePath
from typing import Any

from ..errors import UserError
from .image_folder import ImageFolder


def make_record(root: Path, classes: list[str], train: ImageFolder, val: ImageFolder) -> dict[str, Any]:
    """Return the record with which `divide` divides the folder in the same way later, when images came or went.

    It reads every image: a file that holds another image later must not be taken for the recorded one.
    """
    names = {_name(path, root): path for path, _ in [*train.items, *val.items]}
    return {
        "classes": classes,
        "train": [_name(path, root) for path, _ in train.items],
        "val": [_name(path, root) for path, _ in val.items],
        "contents": {name: _size_and_checksum(path) for name, path in names.items()},
    }


def check_classes(classes: list[str], record: dict[str, Any], root: Path) -> None:
    """Refuse other classes than the record has: the outputs of the network would be taken for other labels."""
    recorded = record["classes"]
    if classes == recorded:
        return
    gone, new = sorted(set(recorded) - set(classes)), sorted(set(classes) - set(recorded))
    raise UserError(
        f"--resume: the run was trained on the classes {_listed(recorded)}, and --data {root} holds "
        f"{_listed(classes)}; only in the run: {_listed(gone)}; only in --data: {_listed(new)}. Give the class folders "
        "the names that they had, or begin a new run in another --out"
    )


def divide(
    parts: list[ImageFolder], record: dict[str, Any], root: Path
) -> tuple[ImageFolder, ImageFolder, tuple[str, ...]]:
    """Divide the images as the record says, and describe what has changed since.

    An added image belongs to neither side. A removed one is replaced in training by another one of its class: epochs
    stay as long, and every other image has its turn, as if nothing had changed. A file that holds another image now
    counts as removed.
    """
    found = {_name(path, root): (path, label) for part in parts for path, label in part.items}
    changed = _changed(found, record["contents"], root)
    unchanged = {name: item for name, item in found.items() if name not in changed}
    train = _replace_removed(unchanged, record, root)
    val = [unchanged[name] for name in record["val"] if name in unchanged]
    notes = _describe_changes(set(found), changed, record)
    return parts[0].with_items(train), parts[0].with_items(val), notes


def describe_shared_images(record: dict[str, Any] | None) -> tuple[str, ...]:
    """Say which images are both trained on and validated on, under whatever names; nothing without a record."""
    if record is None:
        return ()
    contents = record["contents"]
    trained = {tuple(contents[name]): name for name in reversed(record["train"])}
    shared = [(trained[tuple(contents[name])], name) for name in record["val"] if tuple(contents[name]) in trained]
    if not shared:
        return ()
    pairs = ", ".join(f"{train!r} is {val!r}" for train, val in shared[:3]) + ", ..." * (len(shared) > 3)
    return (
        f"{len(shared)} of {len(record['val'])} images to measure on are trained on, too, under other names ({pairs}): "
        "the validation accuracy is higher than it would be on new images",
    )


def _replace_removed(present: dict[str, tuple[str, int]], record: dict[str, Any], root: Path) -> list[tuple[str, int]]:
    """Return the images to train on, with another one of the same class in place of each that was removed."""
    labels = {name: label for label, name in enumerate(record["classes"])}
    substitutes: dict[int, list[tuple[str, int]]] = {label: [] for label in labels.values()}
    for name in record["train"]:
        if name in present:
            substitutes[present[name][1]].append(present[name])
    lacking = [name for name, label in labels.items() if not substitutes[label]]
    if lacking or not any(name in present for name in record["val"]):
        what = f"train on of class {lacking[0]}" if lacking else "measure on"
        raise UserError(
            f"--resume: --data {root} holds none of the images that the run had to {what}; give the folder that the "
            "run was started with, or begin a new run in another --out"
        )
    turns = {label: itertools.cycle(items) for label, items in substitutes.items()}
    return [present.get(name) or next(turns[labels[PurePath(name).parent.name]]) for name in record["train"]]


def _changed(found: dict[str, tuple[str, int]], contents: dict[str, list[int]], root: Path) -> set[str]:
    """Return the names of the files that hold another image than they did; refuse an image recorded under another name.

    If images were renumbered, one that was set aside would otherwise be trained on.
    """
    names = {tuple(content): name for name, content in contents.items()}
    changed = set()
    for name in sorted(found.keys() & contents.keys()):
        content = _size_and_checksum(found[name][0])
        if content == contents[name]:
            continue
        if tuple(content) in names:
            raise UserError(
                f"--resume: in --data {root}, {name!r} is now the image that {names[tuple(content)]!r} was when the "
                "run began; give the images the names that they had, or begin a new run in another --out"
            )
        changed.add(name)
    return changed


def _describe_changes(found: set[str], changed: set[str], record: dict[str, Any]) -> tuple[str, ...]:
    """Say which images came, went or changed since the run began, and what the run does about them."""
    train, val = set(record["train"]), set(record["val"])
    added, removed = found - train - val, (train | val) - found
    if not (added or removed or changed):
        return ()
    count = f"{len(added)} were added, {len(removed)} removed, {len(changed)} changed"
    details = {"added, and left out of this run": added}
    for what, names in (("removed", removed), ("changed", changed)):
        details[f"{what}, and replaced by others of their class to train on"] = names & train
        details[f"{what}, and no longer measured on"] = names & val
    return (
        f"the images are not those that the run began with: {count}",
        *(f"{what}: {_listed(sorted(names), 3)}" for what, names in details.items() if names),
    )


def _listed(names: list[str], most: int = 10) -> str:
    shown = [repr(name) for name in names[:most]] + [f"{len(names) - most} more"] * (len(names) > most)
    return ", ".join(shown) or "none"


def _size_and_checksum(path: str) -> list[int]:
    data = Path(path).read_bytes()
    return [len(data), zlib.crc32(data)]


def _name(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix()
