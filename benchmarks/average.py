"""What an average of the weights costs: the time of a training iteration with it and without.

    python benchmarks/average.py [--rounds N] [--quick] [--json FILE]

One network is trained with SGD and momentum, and every iteration is timed from the forward pass to the end of the
update, in turn with a `WeightAverage` that is updated and without. A ratio is the median of the ratios of single
rounds. A network that is all trained and one whose backbone is frozen are measured. The memory is that of the arrays.
"""

from __future__ import annotations

import argparse
import statistics
import time

import machine

if __name__ == "__main__":
    machine.use_all_cores()  # MXNet reads it when it is imported

import multitrainer  # isort: skip  (before mxnet: on Python 3.12 it is what makes `import mxnet` work)
import mxnet as mx
from mxnet import autograd, gluon

import record

vision = gluon.model_zoo.vision
NETWORKS = {
    "ResNet-18, 32 pixels": (vision.resnet18_v1, (32, 3, 32, 32)),
    "ResNet-50, 224 pixels": (vision.resnet50_v1, (8, 3, 224, 224)),
}


def iteration(net, trainer, average, x, y):
    """Return the seconds that one iteration takes; without an average if it is None."""
    mx.nd.waitall()
    begin = time.perf_counter()
    with autograd.record():
        loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(x), y)
    loss.backward()
    trainer.step(len(x))
    if average is not None:
        average.update()
    mx.nd.waitall()
    return time.perf_counter() - begin


def measure(name, frozen, rounds):
    build, shape = NETWORKS[name]
    net = build(classes=10)
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True)
    groups = [net, (net.features, 0)] if frozen else net
    trainer = multitrainer.MultiLRTrainer(groups, "sgd", {"learning_rate": 1e-3, "momentum": 0.9})
    average = multitrainer.WeightAverage(trainer)
    x, y = mx.nd.random.uniform(shape=shape), mx.nd.zeros(shape[0])
    for _ in range(2):
        iteration(net, trainer, average, x, y)
    without, ratios = [], []
    for number in range(rounds):
        taken = {
            each: iteration(net, trainer, each, x, y) for each in ((None, average) if number % 2 else (average, None))
        }
        without.append(taken[None])
        ratios.append(taken[average] / taken[None])
    return {
        "network": name,
        "frozen": frozen,
        "milliseconds": 1e3 * statistics.median(without),
        "ratio": statistics.median(ratios),
        "MB": sum(array.size for array in average._arrays.values()) * 4 / 1e6,
    }


def table(result):
    """Return a Markdown table with a row for each network."""
    lines = ["| one iteration | without an average | with it | memory of the average |", "|---|--:|--:|--:|"]
    for row in result["rows"]:
        name = row["network"] + (", backbone frozen" if row["frozen"] else "")
        lines.append(f"| {name} | {row['milliseconds']:,.0f} ms | {row['ratio']:.2f} | {row['MB']:.1f} MB |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="the smaller network, one round")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    names, rounds = (list(NETWORKS)[:1], 1) if arguments.quick else (NETWORKS, arguments.rounds)
    rows = [measure(name, frozen, rounds) for name in names for frozen in (False, True)]
    print(table({"rows": rows}), end="")
    if arguments.json:
        found = record.describe(__file__, ("mxnet", "numpy", "multitrainer"), rows=rows)
        record.write_json(found, arguments.json)


if __name__ == "__main__":
    main()
