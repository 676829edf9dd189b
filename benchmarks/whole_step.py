"""Forward pass, backward pass and update of whole networks, beside stock Trainer and PyTorch: time and peak memory.

    python benchmarks/whole_step.py [--only NETWORK ...] [--batch N ...] [--quick] [--json FILE]

ResNet-50, ResNet-18, MobileNet and MobileNet v2 at 224 pixels: everything trained, the first half of the stages frozen,
everything but the output frozen, and the forward pass alone. The contestants are stock Trainer with `grad_req='null'`
set by hand for what is frozen, MultiLRTrainer, and PyTorch with its fused SGD, in its default layout and in
channels_last; there, frozen layers get `requires_grad_(False)` and `eval()`, and the forward pass runs under
`inference_mode`. All use every core.

In each row, every contestant has a process of its own and they make steps in turn, one at a time. A ratio is the median
over the rounds of the time as a part of that of the faster PyTorch in the same round. Memory is the peak of the
process, imports included. Needs PyTorch (the extra `bench`), and 16 GB of memory for batches of 32; takes about 16
minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import statistics
import sys
from typing import NamedTuple

import machine
import record
import turns

STOCK, OURS, TORCH, CHANNELS_LAST = "Trainer", "MultiLRTrainer", "PyTorch", "PyTorch, channels_last"
WHO = (STOCK, OURS, TORCH, CHANNELS_LAST)
TRAINED, HALF, BACKBONE, FORWARD = PARTS = ("all trained", "half frozen", "backbone frozen", "forward alone")
NETWORKS = ("resnet50_v1b", "resnet18_v1b", "mobilenet1.0", "mobilenetv2_1.0")  # of GluonCV
BATCHES, PIXELS, CLASSES = (8, 32), 224, 10
GOALS = {"time": 0.9, "memory": 1.0}  # of PyTorch's best, in every row of these networks
GOAL_NETWORKS = ("resnet50_v1b", "resnet18_v1b")
ROUNDS, ENOUGH = (3, 9), 10  # at least and at most; between them, until so many seconds have passed
RATE = {"learning_rate": 0.01, "momentum": 0.9}


class Case(NamedTuple):
    """What a row measures."""

    network: str
    batch: int
    part: str
    pixels: int = PIXELS

    def frozen(self, stages):
        """Return those of the stages that are frozen."""
        return stages[: {TRAINED: 0, HALF: len(stages) // 2, BACKBONE: -1, FORWARD: 0}[self.part]]


def import_mxnet():
    """Return MXNet and GluonCV's model zoo."""
    os.environ["MXNET_SUBGRAPH_VERBOSE"] = "0"
    import multitrainer  # noqa: F401  before mxnet: on Python 3.12 it is what makes `import mxnet` work

    # isort: split
    import mxnet

    sys.modules["torch"] = None  # beside PyTorch 2, GluonCV refuses to be imported
    from gluoncv import model_zoo

    return mxnet, model_zoo


def mxnet_step(case, who, change=None):
    """Return a function that makes one step, and the shapes of the arrays of the network.

    `change` may change the network when it is hybridized; it is called with the network and a batch.
    """
    mx, model_zoo = import_mxnet()
    import multitrainer

    net = model_zoo.get_model(case.network, classes=CLASSES)
    if case.part == FORWARD:
        net.collect_params().setattr("grad_req", "null")  # or arrays for gradients would be allocated
    net.initialize(mx.init.Xavier())
    x = mx.nd.random.normal(shape=(case.batch, 3, case.pixels, case.pixels))
    y = mx.nd.arange(case.batch) % CLASSES
    net(x[:1]).wait_to_read()
    net.hybridize(static_alloc=True, static_shape=True)
    if change:
        change(net, x)
    shapes = [param.shape for param in net.collect_params().values()]
    if case.part == FORWARD:
        return lambda: net(x).wait_to_read(), shapes
    frozen = case.frozen(multitrainer.stages(net))
    if who == OURS:
        trainer = multitrainer.MultiLRTrainer([net, *((stage, 0) for stage in frozen)], "sgd", RATE)
    else:
        for stage in frozen:
            stage.collect_params().setattr("grad_req", "null")
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", RATE)
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def step():
        with mx.autograd.record():
            value = loss(net(x), y)
        value.backward()
        trainer.step(case.batch)
        mx.nd.waitall()

    return step, shapes


def pytorch_step(case, who):
    """Return a function that makes one step, and the shapes of the arrays of the network."""
    import torch

    import pytorch_networks

    torch.set_num_threads(machine.threads())
    layout = torch.channels_last if who == CHANNELS_LAST else torch.contiguous_format
    net = pytorch_networks.NETWORKS[case.network](CLASSES).to(memory_format=layout)
    x = torch.randn(case.batch, 3, case.pixels, case.pixels).to(memory_format=layout)
    y = torch.arange(case.batch) % CLASSES
    net.train(case.part != FORWARD)
    for stage in case.frozen(list(net)):
        stage.requires_grad_(False).eval()
    trained = [param for param in net.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE["learning_rate"], momentum=RATE["momentum"], fused=True)
    loss = torch.nn.CrossEntropyLoss()

    def train():
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()

    def forward():
        with torch.inference_mode():
            net(x)

    return forward if case.part == FORWARD else train, [tuple(array.shape) for array in pytorch_networks.arrays(net)]


def measure(case, rounds):
    """Return the seconds of each contestant's steps, round by round, and its peak memory in MB."""
    build = {STOCK: mxnet_step, OURS: mxnet_step, TORCH: pytorch_step, CHANNELS_LAST: pytorch_step}
    shapes, seconds, memory = turns.take_turns({who: (build[who], (case, who), {}) for who in WHO}, rounds, ENOUGH)
    if any(each != shapes[STOCK] for each in shapes.values()):
        raise ValueError(f"{case.network} of GluonCV and of pytorch_networks.py do not have the same arrays")
    return seconds, memory


def row_of(case, seconds, memory):
    row = {"network": case.network, "batch": case.batch, "part": case.part, "rounds": len(seconds[OURS])}
    best = [min(pair) for pair in zip(seconds[TORCH], seconds[CHANNELS_LAST])]
    for who in WHO:
        ratios = [one / other for one, other in zip(seconds[who], best)]
        row[who] = {
            "ms": 1e3 * statistics.median(seconds[who]),
            "of PyTorch's best": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
            "MB": memory[who],
        }
    ours, least = row[OURS], min(memory[TORCH], memory[CHANNELS_LAST])
    row["memory of PyTorch's best"] = ours["MB"] / least
    if case.network in GOAL_NETWORKS:
        found = {"time": ours["of PyTorch's best"]["median"], "memory": row["memory of PyTorch's best"]}
        row["goals"] = {
            name: {"is": found[name], "at most": most, "reached": found[name] <= most} for name, most in GOALS.items()
        }
    return row


def compare(networks, batches, quick):
    rows = []
    for case in itertools.starmap(Case, itertools.product(networks, batches, PARTS)):
        if quick:
            case = case._replace(batch=2, pixels=32)
        rows.append(row_of(case, *measure(case, (1, 1) if quick else ROUNDS)))
        print(" ".join(f"{cell:>16}" for cell in cells(rows[-1])), flush=True)
    return rows


HEADINGS = ("network", "batch", "part", "`Trainer`", "`MultiLRTrainer`", "PyTorch", "channels_last")
HEADINGS = (*HEADINGS, "ours / PyTorch's best", "memory, ours", "PyTorch's best")


def cells(row):
    """Return the cells of a row of the table."""
    ratio = row[OURS]["of PyTorch's best"]
    least = min(row[TORCH]["MB"], row[CHANNELS_LAST]["MB"])
    return [
        row["network"],
        str(row["batch"]),
        row["part"],
        *(f"{row[who]['ms']:,.0f} ms" for who in WHO),
        f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        f"{row[OURS]['MB']:,.0f} MB",
        f"{least:,.0f} MB",
    ]


def table(result):
    """Return the table for the docs, and how many rows reach the goals."""
    rule = ["---", "--:", "---", *["--:"] * (len(HEADINGS) - 3)]
    lines = "\n".join(f"| {' | '.join(line)} |" for line in (HEADINGS, rule, *map(cells, result["rows"])))
    return f"{lines}\n\n{verdict(result['rows'])}"


def verdict(rows):
    """Return a sentence for each goal: in which rows it is reached."""
    rows = [row for row in rows if "goals" in row]
    sentences = []
    for name, most in GOALS.items():
        missed = [row for row in rows if not row["goals"][name]["reached"]]
        where = ", ".join(f"{row['network']} {row['batch']} {row['part']}" for row in missed)
        reached = f"reached in {len(rows) - len(missed)} of {len(rows)} rows"
        sentences.append(f"Goal for the ResNets, {name} at most {most} of PyTorch's best: {reached}")
        sentences[-1] += f"; missed by {where}." if missed else "."
    return "\n".join(sentences)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, metavar="NETWORK", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, metavar="N", help="default: 8 and 32")
    parser.add_argument("--quick", action="store_true", help="one step of small images, to check that it runs")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: pip install 'multitrainer[bench]'")
    machine.use_all_cores()
    networks = options.only or (NETWORKS[1:2] if options.quick else NETWORKS)
    rows = compare(networks, options.batch[:1] if options.quick else options.batch, options.quick)
    print(verdict(rows))
    if options.json:
        packages = ("mxnet", "numpy", "gluoncv", "torch", "multitrainer")
        setting = {"pixels": PIXELS, "classes": CLASSES}
        record.write_json(record.describe(__file__, packages, setting=setting, goals=GOALS, rows=rows), options.json)


if __name__ == "__main__":
    main()
