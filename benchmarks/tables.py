"""Write the tables that benchmarks measured into README.md and docs, each from JSON in benchmarks/results alone.

    python benchmarks/tables.py [--check] [FILE ...]

The text between `<!-- benchmark: NAME -->` and `<!-- end -->` is replaced by what the function `table` of
benchmarks/NAME.py makes of benchmarks/results/NAME.json, or by `headline` or `helps` below. With --check nothing is
written, and the exit status is 1 if a file is out of date.
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
MARKED = re.compile(rf"{BEGIN.format('([a-z0-9_]+)')}\n(.*?){END}", re.DOTALL)


def pages():
    """Return the files whose tables are kept up to date."""
    root = HERE.parent
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def updated(text):
    """Return a text with its tables as the results have them now."""
    check_markers(text)
    return MARKED.sub(lambda found: f"{BEGIN.format(found[1])}\n{table(found[1])}\n{END}", text)


def table(name):
    """Return the table NAME in Markdown."""
    if name in OVERVIEWS:
        return OVERVIEWS[name]()
    about = result(name)
    sys.path.insert(0, str(HERE))
    try:
        text = importlib.import_module(name).table(about).strip("\n")
    finally:
        sys.path.remove(str(HERE))
    return f"{text}\n\n{threads(about['threads'])}" if about.get("threads") else text


def threads(number):
    """Return a sentence about the threads that a benchmark ran with."""
    return "Measured with one thread in each process." if number == 1 else f"Measured with {number} threads."


def result(name):
    """Return what benchmarks/NAME.py wrote to its file of results."""
    file = HERE / "results" / f"{name}.json"
    if not file.exists():
        raise FileNotFoundError(f"no {file.name} in benchmarks/results: run benchmarks/{name}.py --json {file}")
    return json.loads(file.read_text())


def headline():
    """Return the README's table: one figure of each benchmark that compares with stock."""
    frozen = {row["variant"]: row for row in result("frozen")["rows"]}
    stock, ours = frozen["stock, lr_mult=0"], [row for name, row in frozen.items() if name.endswith("frozen")][-1]
    (step,) = (
        row
        for row in result("step")["rows"]
        if (row["network"], row["optimizer"], row["groups"]) == ("ResNet-50", "SGD", 64)
    )
    sent = {
        (row["trainer"], row["backbone"]): row["bytes"] / 1e6
        for row in result("distributed")["rows"]
        if row["section"] == "sync"
    }
    (save,) = (row for row in result("checkpoint")["rows"] if row["what"] == "save")
    rows = [
        (
            "one training step, backbone at `lr_mult=0`",
            f"{stock['milliseconds']:,.0f} ms",
            f"{ours['milliseconds']:,.0f} ms",
            "frozen",
        ),
        ("peak memory of that", f"{stock['MB']['static']:,.0f} MB", f"{ours['MB']['static']:,.0f} MB", "frozen"),
        (
            "the update alone, SGD, 64 groups",
            f"{step['Trainer']['ms']:.0f} ms",
            f"{step['MultiLRTrainer']['ms']:.0f} ms",
            "step",
        ),
        (
            "bytes of a step on two workers, backbone at `lr_mult=0`",
            f"{sent['gluon.Trainer', 'lr_mult=0']:.1f} MB",
            f"{sent['MultiLRTrainer', 'frozen']:.2f} MB",
            "distributed",
        ),
        ("saving the optimizer state", f"{save['stock seconds']:.2f} s", f"{save['ours seconds']:.2f} s", "checkpoint"),
    ]
    lines = ["| | stock `Trainer` | `MultiLRTrainer` | measured by |", "|---|--:|--:|---|"]
    for what, before, after, script in rows:
        lines.append(f"| {what} | {before} | {after} | `python benchmarks/{script}.py` |")
    return "\n".join(lines)


def helps():
    """Return the README's table of tasks: what multipliers gained on one learning rate."""
    rows = {(row["plan"], row["way"]): row for row in result("transfer")["rows"]}
    titles = {plan: about["title"] for plan, about in result("transfer")["setting"]["plans"].items()}
    lines = ["| | one learning rate | backbone at 0.1 | layer-wise decay |", "|---|--:|--:|--:|"]
    for plan, title in titles.items():
        gains = [rows[plan, way] for way in ("backbone at 0.1", "layer-wise decay")]
        cells = [f"{100 * row['gain']:+.1f} ± {100 * row['gain interval']:.1f}" for row in gains]
        lines.append(f"| {title} | {100 * rows[plan, 'one learning rate']['accuracy']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


OVERVIEWS = {"headline": headline, "helps": helps}


def check_markers(text):
    """Raise a ValueError if a marker has no counterpart, because its table would not be updated."""
    begun = re.findall(BEGIN.format(".*?"), text)
    if not len(begun) == len(MARKED.findall(text)) == text.count(END):
        raise ValueError(f"{len(begun)} x {BEGIN.format('NAME')!r} and {text.count(END)} x {END!r} do not pair up")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: README.md and docs/*.md")
    options = parser.parse_args(arguments)
    changed = False
    for file in options.files or pages():
        before = file.read_text()
        after = updated(before)
        changed |= after != before
        if options.check:
            lines = (text.splitlines(keepends=True) for text in (before, after))
            sys.stdout.writelines(difflib.unified_diff(*lines, file.name, "as benchmarks/results have it"))
        elif after != before:
            file.write_text(after)
    return int(options.check and changed)


if __name__ == "__main__":
    sys.exit(main())
