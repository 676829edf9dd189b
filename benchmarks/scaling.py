"""How construction, set_lr_mult and step grow with the number of parameters and of groups.

    python benchmarks/scaling.py [--rounds N] [--quick] [--json FILE] [--plot FILE.png]

Parameters of four values, 10 to 10,000 of them in 1 to 1,000 groups, SGD with momentum. `set_lr_mult` gets one target
for each group, and then the name of every parameter. Stock Trainer, which has no groups, is built and steps in turn
with MultiLRTrainer. Figures are in milliseconds: the median of the rounds, and the fastest, which other load on the
machine disturbs least. The last lines use the fastest: the power of the number of parameters by which each grows over
the last tenfold, and the time with the most groups as a part of the time with one. A step ends when the weights are
computed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import time

import machine

if __name__ == "__main__":
    machine.use_all_cores()  # MXNet reads it when it is imported

import multitrainer  # isort: skip  (before mxnet: on Python 3.12 it is what makes `import mxnet` work)
import mxnet as mx
from mxnet import gluon

import record

PARAMETERS, GROUPS = [10, 100, 1000, 10000], [1, 10, 100, 1000]
WHAT = {  # what is measured -> the head of its column
    "construction": "construction",
    "set_lr_mult": "`set_lr_mult`",
    "set_lr_mult by name": "`set_lr_mult` by name",
    "step": "`step`",
}
GOALS = {"construction": 50, "set_lr_mult": 50, "set_lr_mult by name": 100}  # ms, with the most parameters
SETTINGS = {"learning_rate": 1e-5, "momentum": 0.9}


def parameters(count):
    params = [gluon.Parameter(f"p{i:05}", shape=(4,)) for i in range(count)]
    for param in params:
        param.initialize(mx.init.One())
        param.grad()[:] = 1e-3
    return params


def timed(function):
    """Return the milliseconds that a call takes, and what it returns."""
    gc.collect()  # or garbage of earlier calls would be collected during this one
    mx.nd.waitall()
    begin = time.perf_counter()
    found = function()
    mx.nd.waitall()
    return 1e3 * (time.perf_counter() - begin), found


def step(trainer, params):
    for param in params:
        param.data()._fresh_grad = True
    return timed(lambda: trainer.step(32))[0]


def measure(count, groups, rounds):
    """Return the median of each figure, ours and stock's."""
    params = parameters(count)
    parts = [params[i::groups] for i in range(groups)]
    found = {(who, what): [] for who in ("ours", "stock") for what in WHAT}
    values = itertools.cycle([1.0, 2.0])
    for _ in range(rounds):
        taken, ours = timed(lambda: multitrainer.MultiLRTrainer([(part, 0.5) for part in parts], "sgd", dict(SETTINGS)))
        found["ours", "construction"].append(taken)
        taken, stock = timed(lambda: gluon.Trainer(params, "sgd", dict(SETTINGS)))
        found["stock", "construction"].append(taken)
        value = next(values)
        taken, _ = timed(lambda ours=ours, to=value: ours.set_lr_mult({tuple(part): to for part in parts}))
        found["ours", "set_lr_mult"].append(taken)
        taken, _ = timed(lambda ours=ours, to=value: ours.set_lr_mult({param.name: 3 - to for param in params}))
        found["ours", "set_lr_mult by name"].append(taken)
        for who, trainer in (("ours", ours), ("stock", stock)):
            step(trainer, params)  # makes the states
            step(trainer, params)
            found[who, "step"].append(step(trainer, params))
    return {
        "parameters": count,
        "groups": groups,
        **{f"{who} {what} ms": statistics.median(taken) for (who, what), taken in found.items() if taken},
        **{f"{who} {what} fastest": min(taken) for (who, what), taken in found.items() if taken},
    }


def growth(rows):
    """Return, for each figure, the power of the number of parameters by which it grows, and the cost of groups."""
    found = []
    most = max(row["parameters"] for row in rows)
    one = {row["parameters"]: row for row in rows if row["groups"] == 1}
    many = max((row for row in rows if row["parameters"] == most), key=lambda row: row["groups"])
    for what in WHAT:
        name = f"ours {what} fastest"
        found.append(
            {
                "what": what,
                "power": math.log10(one[most][name] / one[most // 10][name]),
                "groups": many["groups"],
                "of one group": many[name] / one[most][name],
                "held": what not in GOALS or max(one[most][name], many[name]) <= GOALS[what],
            }
        )
    return found


def table(result):
    """Return the rows with the most parameters as a Markdown table, with a column for all that was measured."""
    most = max(row["parameters"] for row in result["rows"])
    rows = [row for row in result["rows"] if row["parameters"] == most]
    heads = [head for what, head in WHAT.items() if f"ours {what} ms" in rows[0]]
    lines = [f"| {most:,} parameters | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for row in rows:
        lines.append(f"| {row['groups']:,} group{'s' * (row['groups'] > 1)} |{cells(row, 'ours')}")
    lines.append(f"| stock `Trainer` |{cells(rows[0], 'stock')}")
    return "\n".join(lines) + "\n"


def cells(row, who):
    """Return the cells of one line of the table; stock has no multipliers to set."""
    figures = [row.get(f"{who} {what} ms") for what in WHAT if f"ours {what} ms" in row]
    return "".join(" |" if figure is None else f" {figure:.0f} ms |" for figure in figures)


def plot(result, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(WHAT), figsize=(12.5, 3.2), sharey=True)
    for ax, what in zip(axes, WHAT):
        for groups in dict.fromkeys(row["groups"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["groups"] == groups]
            counts = [row["parameters"] for row in rows]
            ax.loglog(counts, [row[f"ours {what} ms"] for row in rows], "o-", markersize=3, label=f"{groups:,}")
        rows = [row for row in result["rows"] if row["groups"] == 1 and f"stock {what} ms" in row]
        if rows:
            taken = [row[f"stock {what} ms"] for row in rows]
            ax.loglog([row["parameters"] for row in rows], taken, "k--", linewidth=0.8, label="stock Trainer")
        ax.set_title(what, fontsize=9)
        ax.set_xlabel("parameters")
    axes[0].set_ylabel("ms")
    axes[0].legend(title="groups", fontsize=7, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="up to 100 parameters, two rounds")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--plot", help="plot them to this PNG file")
    arguments = parser.parse_args()
    counts, rounds = (PARAMETERS[:2], 2) if arguments.quick else (PARAMETERS, arguments.rounds)
    rows = []
    measure(100, 1, 1)  # loads modules and compiles kernels
    print("parameters groups   construction (stock)   set_lr_mult by name    step (stock)")
    for count, groups in itertools.product(counts, GROUPS):
        if groups <= count:
            rows.append(measure(count, groups, rounds))
            row = rows[-1]
            print(
                f"{count:10,} {groups:6,} {row['ours construction ms']:14.2f} ({row['stock construction ms']:5.1f}) "
                f"{row['ours set_lr_mult ms']:13.2f} {row['ours set_lr_mult by name ms']:7.2f} "
                f"{row['ours step ms']:7.2f} ({row['stock step ms']:6.1f})",
                flush=True,
            )
    found = growth(rows)
    for each in found:
        print(
            f"{each['what']:19}  parameters to the power {each['power']:.2f}, "
            f"{each['groups']:,} groups {each['of one group']:.2f} of one"
        )
    result = record.describe(__file__, ("mxnet", "numpy", "multitrainer"), rows=rows, growth=found)
    if arguments.json:
        record.write_json(result, arguments.json)
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
