"""How fast GluonCV's ImageNet classifiers train on a core of this machine, beside their published accuracy.

    python benchmarks/zoo.py [--only NAME ...] [--quick] [--batch N] [--steps N] [--json FILE] [--plot FILE.png]

Each network makes training steps of `MultiLRTrainer` with everything trained, then with all but its output frozen, and
predictions. Weights are random, which changes no time, and nothing is downloaded. Each network has a process of its own
with one thread, and every core has one of them at a time. The fastest step counts, in CPU time, which other processes
hardly change; the elapsed time of threads that wait for each other says nothing on a busy machine. Peak memory is that
of the process, imports included. About 6 minutes on two idle cores.
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
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work

os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import mxnet as mx

import machine
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
# The command's default model should make a first run of 1,000 images and ten epochs within ten minutes on one core.
IMAGES, MINUTES = 10 * 1000, 10
QUICK = ("mobilenet0.25", "squeezenet1.1")
TRAINED, FROZEN, FORWARD = MODES = ("trained", "frozen", "forward")
HEADINGS = ("trained, images/s", "backbone frozen", "prediction")
CLASSES = 10
ENOUGH = 1.5  # seconds of steps
WARM_UP = 2  # steps; the first of them traces the network


class Runner:
    """A network that has been warmed up and makes steps."""

    def __init__(self, model, mode, batch):
        from gluoncv.model_zoo import get_model

        mx.random.seed(7)
        self.net = get_model(model, classes=CLASSES)
        self.net.initialize(mx.init.Xavier())
        self.batch, pixels = batch, MODELS[model].pixels
        self.x = mx.nd.random.normal(shape=(self.batch, 3, pixels, pixels))
        self.y = mx.nd.arange(self.batch) % CLASSES
        self.net(self.x[:1]).wait_to_read()
        self.net.hybridize(static_alloc=True)
        *backbone, _ = multitrainer.stages(self.net)
        frozen = [(stage, 0) for stage in backbone] if mode == FROZEN else []
        self.trainer = multitrainer.MultiLRTrainer([self.net, *frozen], "sgd", {"learning_rate": 1e-3, "momentum": 0.9})
        self.loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        for _ in range(WARM_UP):
            self.train()

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


def measure(model, options):
    """Measure a network in this process."""
    found = {}
    runs = {FROZEN: {FROZEN: Runner.train, FORWARD: Runner.forward}, TRAINED: {TRAINED: Runner.train}}
    for mode, steps in runs.items():
        machine.forget_peak_memory()
        runner = Runner(model, mode, options.batch)
        for name, step in steps.items():
            found[name] = {"images/s": options.batch / fastest(step, runner, options)}
        found[mode]["MB"] = machine.peak_memory()
        params = runner.net.collect_params().values()  # in the last mode, all are trained but BatchNorm's statistics
        parameters = sum(param.data().size for param in params if param.grad_req != "null")
        del runner
        gc.collect()
    return {"model": model, **MODELS[model]._asdict(), "parameters": parameters, **found}


def fastest(step, runner, options):
    """Return the CPU time in seconds of the fastest of some steps, which last for ENOUGH seconds together."""
    seconds = []
    while len(seconds) < options.steps or (sum(seconds) < ENOUGH and not options.quick):
        begin = time.process_time()
        step(runner)
        seconds.append(time.process_time() - begin)
    return min(seconds)


def child(model, options):
    """Measure a network in a new process."""
    setting = ["--batch", options.batch, "--steps", options.steps, *(["--quick"] if options.quick else [])]
    command = [str(each) for each in (sys.executable, "-W", "ignore", __file__, *setting, "--child", model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}{command} ended with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(models, options):
    """Return one row for each network, the fastest to train first."""
    machine.use_one_thread()
    rows = []
    with ThreadPoolExecutor(machine.cores()) as pool:
        for row in pool.map(lambda model: child(model, options), models):
            rows.append(row)
            print(f"{len(rows)}/{len(models)} {row['model']}", file=sys.stderr)
    return sorted(rows, key=speed, reverse=True)


def speed(row):
    """Return the images per second if everything is trained."""
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
    chosen = choose(result["rows"])
    if chosen is None:
        return f"No network trains on {IMAGES:,} images within {MINUTES} minutes on one core."
    slower = max((speed(row) for row in result["rows"] if row["top1"] > chosen["top1"]), default=0)
    return (
        f"{IMAGES:,} images in {MINUTES} minutes are {IMAGES / MINUTES / 60:.0f} images/s. Of the networks that train "
        f"that fast on one core,\n`{chosen['model']}` has the highest accuracy. The choice is the same for any limit "
        f"from {slower:.0f} to {speed(chosen):.0f} images/s."
    )


def cells(result):
    """Yield the lines of the table, each as a list of cells."""
    named = front(result["rows"])
    yield ["model", "top-1", "parameters", *HEADINGS, "freezing gains", "memory, trained", "memory, frozen"]
    for row in result["rows"]:
        trained, frozen = row[TRAINED], row[FROZEN]
        yield [
            f"**{row['model']}**" if row["model"] in named else row["model"],
            f"{row['top1']:.1f} %",
            f"{row['parameters'] / 1e6:.1f} M",
            *(f"{row[mode]['images/s']:.{0 if row[mode]['images/s'] >= 9.95 else 1}f}" for mode in MODES),
            f"{frozen['images/s'] / trained['images/s']:.1f} x",
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
    """Draw accuracy over training speed; those that no other one beats are named, and others if there is room."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    best = [row for row in result["rows"] if row["model"] in front(result["rows"])]
    rest = [row for row in result["rows"] if row not in best]
    for rows, style in ((rest, {"color": "0.6", "s": 14}), (best, {"color": "C0", "s": 36})):
        axes.scatter([speed(row) for row in rows], [row["top1"] for row in rows], zorder=2, **style)
    axes.plot([speed(row) for row in best], [row["top1"] for row in best], color="C0", alpha=0.5)
    axes.set(xscale="log", xlabel="training, images/s on one core", ylabel="published top-1 accuracy [%]")
    axes.margins(x=0.1)
    axes.grid(alpha=0.3, which="both")
    for number, row in enumerate(best):  # above or below in turn, because neighbours may be close
        beside = {"xytext": (5, 4)} if number % 2 else {"xytext": (-5, -12), "ha": "right"}
        name(axes, row, fontsize="small", weight="bold", **beside)
    named = best[:]
    for row in rest:
        if not any(abs(speed(row) / speed(each) - 1) < 0.15 and abs(row["top1"] - each["top1"]) < 1 for each in named):
            name(axes, row, fontsize=6, color="0.4", xytext=(-5, 0), ha="right", va="center")
            named.append(row)
    figure.savefig(fname, dpi=120)


def name(axes, row, **style):
    axes.annotate(row["model"], (speed(row), row["top1"]), textcoords="offset points", **style)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MODELS, help="measure these networks")
    parser.add_argument("--quick", action="store_true", help="one step, two images, two small networks")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="at least; the fastest counts; default: %(default)s")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--plot", help="plot them to this image file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batch, options.steps = 2, 1
    if options.child:
        print(json.dumps(measure(options.child, options)))
        return
    rows = compare(options.only or (QUICK if options.quick else MODELS), options)
    setting = {"batch": options.batch, "steps": options.steps}
    packages = ("mxnet", "numpy", "gluoncv")
    result = record.describe(__file__, packages, setting=setting, rows=rows)
    show(result)
    if options.json:
        record.write_json(result, options.json)
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
