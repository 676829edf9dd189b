"""Writes run.json beside a run, until the command does so itself."""

from __future__ import annotations

import json
from pathlib import Path


def write_record(out: Path, size: int = 32, resize: int = 32) -> None:
    """Write the record of a run on images of `size` pixels, if the command has not written one."""
    if (out / "run.json").exists():
        return
    before = json.loads((out / "checkpoint" / "run.json").read_text())
    images, options = before["images"], before["options"]
    record = {
        "format": 1,
        "model": options["model"],
        "classes": images["classes"],
        "input": {"size": size, "resize": resize, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "options": options,
        "versions": {},
        "data": before["data"],
        "weights": before["weights"],
        "split": {part: {name: images["contents"][name] for name in images[part]} for part in ("train", "val")},
    }
    (out / "run.json").write_text(json.dumps(record, indent=1))
