"""The time of a whole training loop with the fast update.

    python benchmarks/loop.py [--rounds N] [--quick] [--json FILE]

Both Trainers pass their update to MXNet's engine and return at once, so that Python prepares the next batch while the
backward pass still runs. Here whole loops run in turn: a DataLoader without and with worker processes, forward,
backward, step, and reading the loss or not, from small networks that are not hybridized, in which Python takes most of
the time, to ResNet-18 on images of 32 pixels. A figure is the median over the rounds of the time of one
iteration as a part of stock Trainer's in the same round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import machine

if __name__ == "__main__":
    machine.use_all_cores()  # MXNet reads it when it is imported

import multitrainer  # isort: skip  (before mxnet: on Python 3.12 it is what makes `import mxnet` work)
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn

import record

STOCK, OURS, ORDINARY = "Trainer", "MultiLRTrainer", "MultiLRTrainer, fast off"
BEFORE = 3  # iterations before the clock starts


def mlp(width, depth):
    net = nn.HybridSequential()
    for _ in range(depth):
        net.add(nn.Dense(width, activation="relu"))
    net.add(nn.Dense(10))
    return net


def lenet():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(20, 5, activation="relu"), nn.MaxPool2D(2, 2), nn.Conv2D(50, 5, activation="relu"))
    net.add(nn.MaxPool2D(2, 2), nn.Dense(500, activation="relu"), nn.Dense(10))
    return net


NETWORKS = {
    "20 layers of 16": (lambda: mlp(16, 20), (8, 16)),
    "3 layers of 256": (lambda: mlp(256, 3), (32, 256)),
    "LeNet": (lenet, (32, 1, 28, 28)),
    "ResNet-18": (lambda: gluon.model_zoo.vision.resnet18_v1(classes=10), (32, 3, 32, 32)),
}
LOOPS = [("hybridized", True, False, 0), ("loss read", True, True, 0), ("2 workers", True, True, 2)]
LOOPS.append(("not hybridized", False, False, 0))


def contestant(kind, make, shape, hybridized):
    mx.random.seed(1)
    net = make()
    net.initialize(mx.init.Xavier())
    if hybridized:
        net.hybridize()
    net(mx.nd.ones(shape))
    return net, kind(net.collect_params(), "sgd", {"learning_rate": 1e-3, "momentum": 0.9})


def iteration(net, trainer, loader, read):
    """Return the seconds that one iteration takes."""
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    mx.nd.waitall()
    for number, (x, y) in enumerate(loader):
        if number == BEFORE:
            mx.nd.waitall()
            begin = time.perf_counter()
        x, y = x.as_in_context(mx.cpu()), y.as_in_context(mx.cpu())
        with autograd.record():
            loss = loss_of(net(x), y)
        loss.backward()
        trainer.step(len(x))
        if read:
            loss.mean().asscalar()
    mx.nd.waitall()
    return (time.perf_counter() - begin) / (number + 1 - BEFORE)


def compare(network, hybridized, read, workers, rounds, iterations):
    make, shape = NETWORKS[network]
    values = np.random.RandomState(1)
    count = shape[0] * iterations
    inputs, labels = values.rand(count, *shape[1:]).astype("float32"), values.randint(10, size=count)
    data = gluon.data.ArrayDataset(inputs, labels.astype("float32"))
    kinds = {STOCK: gluon.Trainer, OURS: multitrainer.MultiLRTrainer, ORDINARY: multitrainer.MultiLRTrainer}
    trained = {who: contestant(kind, make, shape, hybridized) for who, kind in kinds.items()}
    seconds = {who: [] for who in trained}
    for number in range(rounds + 1):
        names = list(trained)
        for who in names[number % 3 :] + names[: number % 3]:
            os.environ["MULTITRAINER_FAST"] = "0" if who == ORDINARY else "1"
            loader = gluon.data.DataLoader(data, shape[0], num_workers=workers)
            taken = iteration(*trained[who], loader, read)
            if number:  # in the first, states are made
                seconds[who].append(taken)
    return seconds


def row_of(network, loop, seconds):
    row = {"network": network, "loop": loop, "stock ms": 1e3 * statistics.median(seconds[STOCK])}
    for who in (OURS, ORDINARY):
        ratios = [mine / stocks for mine, stocks in zip(seconds[who], seconds[STOCK])]
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        row[who] = {"of stock": statistics.median(ratios), "quartiles": [quarters[0], quarters[2]]}
        row[who]["fastest"] = min(seconds[who]) / min(seconds[STOCK])
    return row


def table(result):
    """Return a Markdown table of the time of an iteration as a part of stock's, one column per kind of loop."""
    loops = list(dict.fromkeys(row["loop"] for row in result["rows"]))
    lines = [f"| iteration, of stock's time | {' | '.join(loops)} |", "|---|" + "--:|" * len(loops)]
    for network in dict.fromkeys(row["network"] for row in result["rows"]):
        found = {row["loop"]: row[OURS]["of stock"] for row in result["rows"] if row["network"] == network}
        lines.append(f"| {network} | " + " | ".join(f"{found[loop]:.2f}" for loop in loops) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the smallest network, a few iterations")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    rows = []
    rounds, iterations = (1, 6) if arguments.quick else (arguments.rounds, 20)
    for network in list(NETWORKS)[:1] if arguments.quick else NETWORKS:
        for loop, *kind in LOOPS:
            rows.append(row_of(network, loop, compare(network, *kind, rounds, iterations)))
            row = rows[-1]
            low, high = row[OURS]["quartiles"]
            print(
                f"{network:16} {loop:15} stock {row['stock ms']:7.2f} ms   ours {row[OURS]['of stock']:.2f} "
                f"({low:.2f} to {high:.2f}, fastest {row[OURS]['fastest']:.2f})   "
                f"fast off {row[ORDINARY]['of stock']:.2f}",
                flush=True,
            )
    if arguments.json:
        record.write_json(record.describe(__file__, ("mxnet", "numpy", "multitrainer"), rows=rows), arguments.json)


if __name__ == "__main__":
    main()
