"""What a benchmark found, and what it ran with, for its file in benchmarks/results."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

from multitrainer.checkpoint.atomic import replacing


def about(script, packages, arguments=None, **found):
    """Return what a benchmark found, with its command, the versions of packages (None: not installed) and the cores.

    `arguments` are those of the command, by default those of this process.
    """
    return {
        "command": " ".join(["python", f"benchmarks/{Path(script).name}", *(arguments or sys.argv[1:])]),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
        "cores": len(os.sched_getaffinity(0)),
        **found,
    }


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write(found, path):
    """Write what `about` returned."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
