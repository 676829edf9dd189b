"""The time of one update of all parameters, beside stock Trainer, PyTorch and the limit of the memory bandwidth.

    python benchmarks/step.py [--rounds N] [--only NETWORK ...] [--quick] [--json FILE] [--plot FILE.png]

On lists of arrays shaped as the parameters of ResNet-50, MobileNet v2 and BERT-base, and on 160 of four values, float32
on the CPU: stock Trainer, one stock Trainer for each group, MultiLRTrainer with and without its fast update, and
PyTorch's SGD and AdamW with defaults and with fused=True (the extra `bench`; without it those columns stay empty). In
every round each makes one update, in turn; a figure is the median over the rounds of its time as a part of the time of
stock Trainer in the same round. The JSON also has the fastest round as a part of stock's fastest, which other load on
the machine disturbs less. Memory bandwidth is that of `a += b` on arrays of 256 MB, in the same run; the least that an
update can do is to read weights, gradients and states once, and to write weights and states once.
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
from mxnet import gluon

import record

try:
    import torch
except ImportError:
    torch = None
else:
    torch.set_num_threads(machine.threads() or machine.cores())

OURS, ORDINARY, STOCK, MANY = "MultiLRTrainer", "MultiLRTrainer, fast off", "Trainer", "a Trainer a group"
TORCH, FUSED = "PyTorch", "PyTorch, fused"
WHO = [STOCK, MANY, OURS, ORDINARY, TORCH, FUSED]
GROUPS = [1, 64]
RATE = 1e-5
OPTIMIZERS = {
    "SGD": ("sgd", {"learning_rate": RATE, "momentum": 0.9, "wd": 1e-4}, 5),
    "NAG": ("nag", {"learning_rate": RATE, "momentum": 0.9, "wd": 1e-4}, 5),
    "Adam": ("adam", {"learning_rate": RATE, "wd": 1e-4}, 7),
    "AdamW": ("adamw", {"learning_rate": RATE, "wd": 1e-4}, 7),
}  # name, settings, and how often each value is read or written
GOALS = {("ResNet-50", "SGD"): 0.35, ("ResNet-50", "Adam"): 0.5, ("160 tiny", "SGD"): 0.8}  # of stock's time


def zoo(name):
    def shapes():
        net = getattr(gluon.model_zoo.vision, name)()
        net.initialize()
        net(mx.nd.ones((1, 3, 64, 64)))
        return [param.shape for param in net.collect_params().values() if param.grad_req != "null"]

    return shapes


def bert():
    """Return the shapes of BERT-base, uncased: Devlin et al., 2019."""
    width, inner = 768, 3072
    layer = [(width, width), (width,)] * 4 + [(width,)] * 4 + [(inner, width), (inner,), (width, inner), (width,)]
    return [(30522, width), (512, width), (2, width), (width,), (width,), *layer * 12, (width, width), (width,)]


NETWORKS = {
    "ResNet-50": zoo("resnet50_v1"),
    "MobileNet v2": zoo("mobilenet_v2_1_0"),
    "BERT-base": bert,
    "160 tiny": lambda: [(4,)] * 160,
}


def parameters(shapes, groups):
    params = []
    for i, shape in enumerate(shapes):
        param = gluon.Parameter(f"p{i:04}", shape=shape)
        param.initialize(mx.init.Uniform(0.1))
        param.grad()[:] = 1e-3
        param.lr_mult = 1 + (i % groups) / groups
        params.append(param)
    return params


def stock(params, optimizer, groups, kind=gluon.Trainer):
    name, settings, _ = OPTIMIZERS[optimizer]
    return kind(params, name, dict(settings)).step


def many(params, optimizer, groups):
    steps = [stock(params[i::groups], optimizer, 1) for i in range(groups)]

    def step(batch_size):
        for each in steps:
            each(batch_size)

    return step


def ours(params, optimizer, groups, switch="1"):
    ready = multitrainer.MultiLRTrainer(
        [(params[i::groups], 1 + i / groups) for i in range(groups)], *OPTIMIZERS[optimizer][:2]
    )

    def step(batch_size):
        os.environ["MULTITRAINER_FAST"] = switch
        ready.step(batch_size)

    return step


def pytorch(shapes, optimizer, groups, **kwargs):
    tensors = [torch.zeros(shape).uniform_(-0.1, 0.1) for shape in shapes]
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 1e-3)
    params = [{"params": tensors[i::groups], "lr": RATE * (1 + i / groups)} for i in range(groups)]
    if optimizer in ("Adam", "AdamW"):
        ready = torch.optim.AdamW(params, lr=RATE, weight_decay=1e-4, **kwargs)
    else:
        kwargs["nesterov"] = optimizer == "NAG"
        ready = torch.optim.SGD(params, lr=RATE, momentum=0.9, weight_decay=1e-4, **kwargs)
    return lambda batch_size: ready.step()


def contestants(shapes, optimizer, groups):
    """Return a function that prepares gradients, and a step function per contestant; MXNet's share their arrays."""
    params = parameters(shapes, groups)
    found = {
        STOCK: stock(params, optimizer, groups),
        MANY: many(params, optimizer, groups),
        OURS: ours(params, optimizer, groups),
        ORDINARY: ours(params, optimizer, groups, "0"),
    }
    if torch is not None:
        found[TORCH] = pytorch(shapes, optimizer, groups)
        found[FUSED] = pytorch(shapes, optimizer, groups, fused=True)

    def get_ready():
        for param in params:
            param.data()._fresh_grad = True
        mx.nd.waitall()

    return get_ready, found


def compare(shapes, optimizer, groups, rounds):
    get_ready, steps = contestants(shapes, optimizer, groups)
    seconds = {who: [] for who in steps}
    for number in range(rounds + 2):
        names = list(steps)
        for who in names[number % len(names) :] + names[: number % len(names)]:
            get_ready()
            begin = time.perf_counter()
            steps[who](32)
            mx.nd.waitall()
            if number >= 2:  # states, caches
                seconds[who].append(time.perf_counter() - begin)
    return seconds


def bandwidth(rounds, size):
    """Return the bytes that `a += b` reads and writes per second, with MXNet or PyTorch, whichever is faster."""
    best = []
    a, b = mx.nd.ones(size), mx.nd.ones(size)
    for _ in range(rounds):
        mx.nd.waitall()
        begin = time.perf_counter()
        mx.nd.elemwise_add(a, b, out=a)
        mx.nd.waitall()
        best.append(time.perf_counter() - begin)
    if torch is not None:
        a, b = torch.ones(size), torch.ones(size)
        for _ in range(rounds):
            begin = time.perf_counter()
            a.add_(b)
            best.append(time.perf_counter() - begin)
    return 3 * 4 * size / min(best)


def row_of(network, optimizer, groups, shapes, seconds, memory):
    values = int(sum(np.prod(shape) for shape in shapes))
    row = {"network": network, "optimizer": optimizer, "groups": groups, "arrays": len(shapes), "values": values}
    for who, taken in seconds.items():
        ratios = [mine / stocks for mine, stocks in zip(taken, seconds[STOCK])]
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        row[who] = {
            "ms": 1e3 * statistics.median(taken),
            "of stock": statistics.median(ratios),
            "fastest": [1e3 * min(taken), min(taken) / min(seconds[STOCK])],
            "quartiles": [quarters[0], quarters[2]],
            "of bandwidth": 4 * values * OPTIMIZERS[optimizer][2] / statistics.median(taken) / memory,
        }
    if (network, optimizer) in GOALS and groups == max(GROUPS):
        row["goal"] = GOALS[network, optimizer]
        row["held"] = row[OURS]["of stock"] <= row["goal"]
    return row


def line(row):
    cells = [f"{row['network']:12} {row['optimizer']:5} {row['groups']:3} {row[STOCK]['ms']:8.2f} ms"]
    for who in WHO[1:]:
        cells.append(f"{row[who]['of stock']:8.2f}" if who in row else "        ")
    return " ".join(cells) + f"   {row[OURS]['of bandwidth']:.0%}   fastest {row[OURS]['fastest'][1]:.2f}"


def size(values):
    return f"{values / 1e6:.3g} M" if values >= 1e5 else f"{values:,}"


def table(result):
    """Return the rows with the most groups as a Markdown table."""
    lines = [
        "| float32, 64 groups | optimizer | `Trainer` | a `Trainer` a group | **`MultiLRTrainer`** | plain update "
        "| PyTorch | PyTorch, fused | of `a += b`'s bandwidth |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        if row["groups"] != max(each["groups"] for each in result["rows"]):
            continue
        cells = [f"{row['network']} ({size(row['values'])})", row["optimizer"], f"{row[STOCK]['ms']:.3g} ms"]
        for who in WHO[1:]:
            text = f"{row[who]['of stock']:.2f}" if who in row else ""
            cells.append(f"**{text}**" if who == OURS else text)
        lines.append("| " + " | ".join([*cells, f"{row[OURS]['of bandwidth']:.0%}"]) + " |")
    return "\n".join(lines) + "\n"


def plot(result, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    networks = list(dict.fromkeys(row["network"] for row in result["rows"]))
    figure, axes = plt.subplots(len(networks), 1, figsize=(9, 2.3 * len(networks)), squeeze=False, layout="constrained")
    for ax, network in zip(axes[:, 0], networks):
        rows = [row for row in result["rows"] if row["network"] == network]
        for i, who in enumerate(WHO):
            there = [(x, row[who]) for x, row in enumerate(rows) if who in row]
            low = [max(cell["of stock"] - cell["quartiles"][0], 0) for _, cell in there]
            high = [max(cell["quartiles"][1] - cell["of stock"], 0) for _, cell in there]
            at = [x + (i - 2.5) * 0.14 for x, _ in there]
            ax.bar(at, [cell["of stock"] for _, cell in there], 0.13, yerr=[low, high], label=who, error_kw={"lw": 0.7})
        ax.axhline(1, color="0.6", linewidth=0.7)
        ax.set_ylim(0, 2)
        ax.set_title(f"{network}, {size(rows[0]['values'])} values", fontsize=9, loc="left")
        ax.set_xticks(range(len(rows)))
        ax.set_xticklabels([f"{row['optimizer']}\n{row['groups']}" for row in rows], fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncol=3, fontsize=8)
    figure.supylabel("time of step(), as a part of stock Trainer's", fontsize=9)
    figure.supxlabel("optimizer and number of groups", fontsize=9)
    figure.savefig(path, dpi=130)


def measure(networks, rounds, groups, size):
    memory, rows = bandwidth(rounds, size), []
    print(f"memory: {memory / 1e9:.1f} GB/s\n{'':12} {'':4} groups   stock  of stock: {'  '.join(WHO[1:])}   of memory")
    for network in networks:
        shapes = NETWORKS[network]()
        for optimizer in OPTIMIZERS:
            for count in groups:
                count = min(count, len(shapes))
                rows.append(
                    row_of(network, optimizer, count, shapes, compare(shapes, optimizer, count, rounds), memory)
                )
                print(line(rows[-1]), flush=True)
    return memory, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="the small networks, a few rounds")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--plot", help="plot them to this PNG file")
    arguments = parser.parse_args()
    if arguments.quick:
        memory, rows = measure(["MobileNet v2", "160 tiny"], 2, [64], 1 << 22)
    else:
        memory, rows = measure(arguments.only, arguments.rounds, GROUPS, 1 << 26)
    packages = ("mxnet", "numpy", "torch", "multitrainer")
    result = record.describe(__file__, packages, bandwidth=memory, rows=rows)
    if arguments.json:
        record.write_json(result, arguments.json)
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
