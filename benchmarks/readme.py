"""Write the tables of measured figures in the README, each from its JSON file in benchmarks/results.

    python benchmarks/readme.py [--check] [--readme FILE]

The text between `<!-- benchmark: NAME -->` and `<!-- end -->` is replaced by the result of the function `table` of
benchmarks/NAME.py for benchmarks/results/NAME.json. With --check nothing is written, and the exit status is 1 if the
file is out of date.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- benchmark: {} -->", "<!-- end -->"
MARKED = re.compile(rf"{BEGIN.format('([a-z_]+)')}\n(.*?){END}", re.DOTALL)


def written(text):
    """Return a text with its tables replaced by those of the current results."""
    check_markers(text)
    return MARKED.sub(lambda found: f"{BEGIN.format(found[1])}\n{table(found[1])}\n{END}", text)


def table(name):
    """Return the table that benchmarks/NAME.py makes from its results."""
    result = HERE / "results" / f"{name}.json"
    if not result.exists():
        raise FileNotFoundError(f"no {result.name} in benchmarks/results: run benchmarks/{name}.py --json {result}")
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module(name).table(json.loads(result.read_text())).strip("\n")
    finally:
        sys.path.remove(str(HERE))


def check_markers(text):
    """Raise a ValueError if a marker has no counterpart, because its table would not be written."""
    begun = re.findall(BEGIN.format(".*?"), text)
    if not len(begun) == len(MARKED.findall(text)) == text.count(END):
        raise ValueError(f"{len(begun)} x {BEGIN.format('NAME')!r} and {text.count(END)} x {END!r} do not pair up")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", metavar="FILE")
    options = parser.parse_args(arguments)
    before = options.readme.read_text()
    after = written(before)
    if options.check:
        lines = (text.splitlines(keepends=True) for text in (before, after))
        sys.stdout.writelines(difflib.unified_diff(*lines, options.readme.name, "as benchmarks/results have it"))
        return int(after != before)
    options.readme.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
