"""Write what a benchmark found, and what it ran with, to its file in benchmarks/results.

It imports neither MXNet nor this package, so that the processes of a cluster can choose when they do.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import machine


def describe(script, packages, arguments=None, **found):
    """Return what a benchmark found, with its command, versions of packages, and the numbers of cores and of threads.

    The version of a package that is not installed is None. `arguments` are those of the command, by default those of
    this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return {
        "command": " ".join(["python", f"benchmarks/{Path(script).name}", *arguments]),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
        "cores": len(os.sched_getaffinity(0)),
        "threads": machine.threads(),
        **found,
    }


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_json(found, path):
    """Write a value as JSON. If the process is stopped meanwhile, the file that was there before stays."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path):
    """Read what `write_json` wrote."""
    return json.loads(Path(path).read_text())
