"""The cost of saving and loading the states of ResNet-50 with momentum, beside stock Trainer in the same run.

    python benchmarks/checkpoint.py [--rounds N] [--network NAME] [--json FILE]

Each round starts a process for each of the four, in turn: save and load, by stock Trainer (a pickle, not flushed to
disk) and by MultiLRTrainer. Memory is the peak of the process meanwhile, above what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import machine

if __name__ == "__main__":
    machine.use_all_cores()  # MXNet reads it when it is imported

import multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work

os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import mxnet as mx

import record

BOUNDS = {"time": 1.5, "memory": 1.2}  # the most that ours may take, as a part of stock's
REPEATS = 3


def build(who, network):
    net = getattr(mx.gluon.model_zoo.vision, network)()
    net.initialize()
    kind = multitrainer.MultiLRTrainer if who == "ours" else mx.gluon.Trainer
    trainer = kind(net.collect_params(), "sgd", {"learning_rate": 0.01, "momentum": 0.9}, kvstore=None)
    with mx.autograd.record():
        loss = net(mx.nd.ones((1, 3, 64, 64))).sum()
    loss.backward()
    trainer.step(1)
    mx.nd.waitall()
    return trainer


def measure(who, what, network, path):
    """Save or load a few times; return the seconds of each, the peak memory in MB, and the size of the file."""
    trainer = build(who, network)
    path = f"{path}.{who}"
    if what == "load" and not os.path.exists(path):
        trainer.save_states(path)
    seconds, megabytes = [], []
    for _ in range(REPEATS):
        before = machine.forget_peak_memory()
        begin = time.perf_counter()
        getattr(trainer, f"{what}_states")(path)
        mx.nd.waitall()
        seconds.append(time.perf_counter() - begin)
        megabytes.append(machine.peak_memory() - before)
    return {"seconds": seconds, "megabytes": max(megabytes), "size": os.path.getsize(path) / 2**20}


def run(who, what, network, path):
    command = [sys.executable, "-W", "ignore", __file__, "--child", who, what, network, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}{command} ended with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(rounds, network):
    """Return one row for saving and one for loading."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("save", "load"):
            found = {"stock": [], "ours": []}
            for i in range(rounds):
                for who in sorted(found, reverse=bool(i % 2)):
                    found[who].append(run(who, what, network, os.path.join(folder, "states")))
            row = {"what": what}
            for who, each in found.items():
                row[f"{who} seconds"] = statistics.median(value for one in each for value in one["seconds"])
                row[f"{who} MB"] = statistics.median(one["megabytes"] for one in each)
                row[f"{who} file MB"] = each[0]["size"]
            pairs = [[statistics.median(one["seconds"]) for one in each] for each in zip(found["ours"], found["stock"])]
            ratios = [ours / stock for ours, stock in pairs]
            row["time"], row["time low"], row["time high"] = statistics.median(ratios), min(ratios), max(ratios)
            row["memory"] = row["ours MB"] / row["stock MB"]
            row["held"] = all(row[name] <= bound for name, bound in BOUNDS.items())
            rows.append(row)
    return rows


def table(result):
    """Return the table for the docs."""
    lines = ["| | stock | ours | ours / stock |", "|---|---|---|---|"]
    for row in result["rows"]:
        who = [f"{row[f'{who} seconds']:.3f} s, {row[f'{who} MB']:.0f} MB" for who in ("stock", "ours")]
        spread = f"{row['time']:.2f} ({row['time low']:.2f} to {row['time high']:.2f})"
        lines.append(f"| {row['what']} | {who[0]} | {who[1]} | time {spread}, memory {row['memory']:.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", default="resnet50_v1", help="a name in mxnet.gluon.model_zoo.vision")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(*arguments.child)))
        return
    rows = compare(arguments.rounds, arguments.network)
    print("      stock                ours                 ours / stock")
    for row in rows:
        print(
            f"{row['what']}  {row['stock seconds']:.3f} s {row['stock MB']:6.0f} MB    {row['ours seconds']:.3f} s "
            f"{row['ours MB']:6.0f} MB    time {row['time']:.2f}, memory {row['memory']:.2f}"
        )
    print(f"files: stock {rows[0]['stock file MB']:.0f} MB, ours {rows[0]['ours file MB']:.0f} MB")
    if arguments.json:
        record.write_json(record.describe(__file__, ("mxnet", "numpy"), rows=rows), arguments.json)


if __name__ == "__main__":
    main()
