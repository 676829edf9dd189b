"""How fast GluonCV's ImageNet classifiers train on this machine, beside their published accuracy.

    python benchmarks/zoo.py [--only NAME ...] [--quick] [--batch N] [--rounds N] [--json FILE] [--plot FILE.png]

Each network makes training steps of `MultiLRTrainer` with everything trained, then with all but its output frozen, and
predictions. Weights are random, which changes no time, and nothing is downloaded. Each network has a process of its own
with a thread for every physical core, and takes turns there with MobileNet 1.0 run in the same way. The ratio of their
best turns hardly depends on how fast the machine was meanwhile, and the images per second are this ratio times
MobileNet's best turn in any process. Peak memory is that of the process before MobileNet is built. About 15 minutes on
two idle cores; on busy ones, threads that wait for each other spoil the ratios too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work

os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import mxnet as mx

import record

sys.modules["torch"] = None  # beside PyTorch 2, GluonCV refuses to be imported
import gluoncv  # noqa: E402, F401

del sys.modules["torch"]


class Published(NamedTuple):
    """What GluonCV publishes of a network: top-1 accuracy on ImageNet in percent, and the size of its images."""

    top1: float
    pixels: int = 224


# From the tables in https://github.com/dmlc/gluon-cv/tree/master/docs/model_zoo/csv_tables/Classifications, shown at
# https://cv.gluon.ai/model_zoo/classification.html. The hash that stands there beside each accuracy is that of the
# weights that GluonCV 0.10.5 downloads, except for mobilenetv3_small, whose hash differs. Networks without a published
# accuracy or weights are left out, and so is GoogLeNet: the command does not take a network with several outputs.
MODELS = {
    "alexnet": Published(54.92),
    "densenet121": Published(74.97),
    "inceptionv3": Published(78.77, 299),
    "mobilenet0.25": Published(52.91),
    "mobilenet0.5": Published(65.20),
    "mobilenet0.75": Published(70.25),
    "mobilenet1.0": Published(73.28),
    "mobilenetv2_0.25": Published(51.76),
    "mobilenetv2_0.5": Published(64.43),
    "mobilenetv2_0.75": Published(69.36),
    "mobilenetv2_1.0": Published(72.04),
    "mobilenetv3_large": Published(75.32),
    "mobilenetv3_small": Published(67.72),
    "resnest14": Published(75.75),
    "resnest26": Published(78.68),
    "resnest50": Published(81.04),
    "resnet18_v1": Published(70.93),
    "resnet18_v1b": Published(70.94),
    "resnet18_v2": Published(71.00),
    "resnet34_v1": Published(74.37),
    "resnet34_v1b": Published(74.65),
    "resnet34_v2": Published(74.40),
    "resnet50_v1": Published(77.36),
    "resnet50_v1b": Published(77.67),
    "resnet50_v1d": Published(79.15),
    "resnet50_v2": Published(77.11),
    "resnext50_32x4d": Published(79.32),
    "se_resnext50_32x4d": Published(79.95),
    "squeezenet1.0": Published(56.11),
    "squeezenet1.1": Published(54.96),
    "vgg11_bn": Published(68.59),
    "vgg16_bn": Published(73.10),
}
REFERENCE = "mobilenet1.0"
# The command's default model should make a first run of 1,000 images and ten epochs within five minutes on two cores.
IMAGES, MINUTES = 10 * 1000, 5
QUICK = ("mobilenet0.25", "squeezenet1.1")
TRAINED, FROZEN, FORWARD = MODES = ("trained", "frozen", "forward")
CLASSES = 10
TURN = 0.3  # seconds that a turn takes at least
ENOUGH = 12  # seconds after which slow networks take no third turn


def physical_cores():
    """Return how many cores this process may use, those that share a core counted once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else cpu)
    return len(cores)


class Runner:
    """A network that has been warmed up and runs for a turn at a time, forward or in training."""

    def __init__(self, model, mode, options):
        from gluoncv.model_zoo import get_model

        mx.random.seed(7)
        self.net = get_model(model, classes=CLASSES)
        self.net.initialize(mx.init.Xavier())
        self.batch, pixels = options.batch, MODELS[model].pixels
        self.x = mx.nd.random.normal(shape=(self.batch, 3, pixels, pixels))
        self.y = mx.nd.arange(self.batch) % CLASSES
        self.net(self.x[:1]).wait_to_read()
        self.net.hybridize(static_alloc=True)
        *backbone, _ = multitrainer.stages(self.net)
        frozen = [(stage, 0) for stage in backbone] if mode == FROZEN else []
        self.trainer = multitrainer.MultiLRTrainer([self.net, *frozen], "sgd", {"learning_rate": 1e-3, "momentum": 0.9})
        self.loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        self.shortest = 0 if options.quick else TURN
        self.train(), self.train()  # the first step traces the network

    def train(self):
        """Make a training step."""
        with mx.autograd.record():
            loss = self.loss(self.net(self.x), self.y)
        loss.backward()
        self.trainer.step(self.batch)
        mx.nd.waitall()

    def forward(self):
        """Predict."""
        self.net(self.x).wait_to_read()

    def images_per_second(self, step):
        """Run for a turn of `Runner.train` or `Runner.forward`."""
        images, begin = 0, time.perf_counter()
        while True:
            step(self)
            images += self.batch
            seconds = time.perf_counter() - begin
            if seconds >= self.shortest:
                return images / seconds


def measure(model, options):
    """Measure a network in this process, in turn with the reference."""
    found = {}
    for mode, steps in ((FROZEN, {FROZEN: Runner.train, FORWARD: Runner.forward}), (TRAINED, {TRAINED: Runner.train})):
        forget_peak_memory()
        own = Runner(model, mode, options)
        peak = peak_memory()
        reference = Runner(REFERENCE, mode, options)
        for name, step in steps.items():
            found[name] = {"MB": peak, "rounds": take_turns(own, reference, step, options.rounds)}
        found["parameters"] = sum(p.data().size for p in own.net.collect_params().values() if p.grad_req != "null")
        del own, reference
        gc.collect()
    return found


def take_turns(own, reference, step, rounds):
    """Return the images per second of two networks, round by round."""
    found, begin = [], time.perf_counter()
    while len(found) < rounds and (len(found) < 2 or time.perf_counter() - begin < ENOUGH):
        found.append((own.images_per_second(step), reference.images_per_second(step)))
    return found


def forget_peak_memory():
    """Let `peak_memory` begin at what this process uses now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory():
    """Return the most memory that this process has used, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def child(model, options):
    """Measure a network in a new process."""
    setting = ["--batch", options.batch, "--rounds", options.rounds, *(["--quick"] if options.quick else [])]
    command = [str(each) for each in (sys.executable, "-W", "ignore", __file__, *setting, "--child", model)]
    env = {**os.environ, "MXNET_OMP_MAX_THREADS": str(physical_cores())}
    env.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}{command} ended with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(models, options):
    """Return one row for each network, the fastest to train first."""
    found = {}
    for number, model in enumerate(models, 1):
        print(f"{number}/{len(models)} {model}", file=sys.stderr)
        found[model] = child(model, options)
    best = {mode: max(turn for each in found.values() for _, turn in each[mode]["rounds"]) for mode in MODES}
    rows = [row_of(model, measured, best) for model, measured in found.items()]
    return sorted(rows, key=speed, reverse=True)


def row_of(model, measured, best):
    row = {"model": model, **MODELS[model]._asdict(), "parameters": measured["parameters"]}
    for mode in MODES:
        own, reference = map(max, zip(*measured[mode]["rounds"]))
        row[mode] = {"ratio": own / reference, "images/s": own / reference * best[mode]}
        if mode != FORWARD:
            row[mode]["MB"] = measured[mode]["MB"]
    return row


def speed(row):
    return row[TRAINED]["images/s"]


def front(rows):
    """Return the names of the networks that no other one beats: each that trains as fast is less accurate."""
    best, names = 0.0, []
    for row in sorted(rows, key=lambda row: (-speed(row), -row["top1"])):
        if row["top1"] > best:
            best = row["top1"]
            names.append(row["model"])
    return names


def choose(rows):
    """Return the row of the most accurate network that is fast enough for the command's default, or None."""
    fast = [row for row in rows if speed(row) >= IMAGES / MINUTES / 60]
    return max(fast, key=lambda row: row["top1"], default=None)


def verdict(result):
    """Return the sentences below the table: which network the rule chooses, and how firmly."""
    chosen, threads = choose(result["rows"]), result["setting"]["threads"]
    if chosen is None:
        return f"No network trains on {IMAGES:,} images within {MINUTES} minutes on {threads} threads."
    slower = max((speed(row) for row in result["rows"] if row["top1"] > chosen["top1"]), default=0)
    return (
        f"{IMAGES:,} images in {MINUTES} minutes are {IMAGES / MINUTES / 60:.0f} images/s. Of the networks that train "
        f"that fast on {threads} threads,\n`{chosen['model']}` has the highest accuracy. The choice is the same "
        f"for any limit from {slower:.0f} to {speed(chosen):.0f} images/s."
    )


def cells(result):
    """Yield the lines of the table, each as a list of cells."""
    named = front(result["rows"])
    yield [
        *("model", "top-1", "parameters", "trained, images/s", "of MobileNet 1.0"),
        *("backbone frozen", "gain", "prediction", "memory, trained", "memory, frozen"),
    ]
    for row in result["rows"]:
        trained, frozen, forward = (row[mode] for mode in MODES)
        name = f"**{row['model']}**" if row["model"] in named else row["model"]
        yield [
            *(name, f"{row['top1']:.1f} %", f"{row['parameters'] / 1e6:.1f} M"),
            *(f"{trained['images/s']:.3g}", f"{trained['ratio']:.2f}", f"{frozen['images/s']:.3g}"),
            f"{frozen['images/s'] / trained['images/s']:.1f} x",
            f"{forward['images/s']:.3g}",
            *(f"{each['MB']:,.0f} MB" for each in (trained, frozen)),
        ]


def table(result):
    """Return the table for the docs, and what it says about the default model."""
    head, *lines = cells(result)
    rule = ["---", *["---:"] * (len(head) - 1)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
    return f"{rows}\n\n{verdict(result)}"


def show(result):
    lines = list(cells(result))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]))
    print(f"\n{verdict(result)}")


def plot(result, fname):
    """Draw accuracy over training speed, and name the networks that no other one beats."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    best = front(result["rows"])
    line = sorted((speed(row), row["top1"]) for row in result["rows"] if row["model"] in best)
    axes.plot(*zip(*line), "-", color="C0", alpha=0.5, zorder=1)
    for row in result["rows"]:
        at, on_front = (speed(row), row["top1"]), row["model"] in best
        axes.scatter(*at, color="C0" if on_front else "0.6", s=36 if on_front else 14, zorder=2)
        style = {"fontsize": "small", "weight": "bold"} if on_front else {"fontsize": 6, "color": "0.4"}
        axes.annotate(row["model"], at, xytext=(5, 3), textcoords="offset points", **style)
    threads = result["setting"]["threads"]
    axes.set(xscale="log", xlabel=f"training, images/s on {threads} threads", ylabel="published top-1 accuracy [%]")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(fname, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MODELS, help="measure these networks")
    parser.add_argument("--quick", action="store_true", help="one turn of one step, two images, two small networks")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4, help="turns of each network at most; default: %(default)s")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--plot", help="plot them to this image file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batch, options.rounds = 2, 1
    if options.child:
        print(json.dumps(measure(options.child, options)))
        return
    rows = compare(options.only or (QUICK if options.quick else MODELS), options)
    setting = {"batch": options.batch, "rounds": options.rounds, "threads": physical_cores()}
    packages = ("mxnet", "numpy", "numba", "gluoncv")
    result = record.describe(__file__, packages, setting=setting, rows=rows)
    show(result)
    if options.json:
        record.write_json(result, options.json)
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
