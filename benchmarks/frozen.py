"""What freezing the first layers of ResNet-50 saves: time of a training step and peak memory, beside stock.

    python benchmarks/frozen.py [--network NAME] [--pixels N] [--batch N] [--rounds N] [--json FILE] [--plot FILE]

Stock trains everything, or has the backbone at `lr_mult=0`, or at `grad_req='null'` by hand; here the first 0, 1, ...
stages are frozen, up to all but the output. Beside them a forward pass alone, and the output trained on features that
the backbone computed once. Times are taken in turn in one process, each as a ratio to stock's in the same round; peak
memory is that of a process each, imports and weights included, hybridized with static_alloc and without.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import machine

if __name__ == "__main__":
    machine.use_all_cores()  # MXNet reads it when it is imported

import multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work

os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import mxnet as mx

import record

sys.modules["torch"] = None  # beside PyTorch 2, GluonCV refuses to be imported
import gluoncv  # noqa: E402, F401

del sys.modules["torch"]

TRAINED, ZERO, NULL = "stock, all trained", "stock, lr_mult=0", "stock, grad_req='null'"
FORWARD, CACHED = "forward alone", "cached features"
HYBRIDIZE = {"static": {"static_alloc": True, "static_shape": True}, "plain": {}}
HEADINGS = {"static": "`static_alloc`", "plain": "plain `hybridize()`"}
WARM_UP, TIMED = 2, 2  # steps of one turn; the first of them traces the network
GOALS = {  # with all stages but the output frozen: which figure, and its maximum
    "time": ("of lr_mult=0", 1 / 2.7),
    "forward": ("of forward", 1.1),
    "memory": ("memory of lr_mult=0", 0.6),
}


def frozen(number):
    return f"{number} frozen"


def make_step(variant, options, mode):
    """Return a function that makes one step of a new network and waits for its end."""
    from gluoncv.model_zoo import get_model

    mx.random.seed(7)
    net = get_model(options.network, classes=10)
    net.initialize(mx.init.Xavier())
    x = mx.nd.random.normal(shape=(options.batch, 3, options.pixels, options.pixels))
    y = mx.nd.arange(options.batch) % 10
    *backbone, head = multitrainer.stages(net)
    if variant == CACHED:
        net, x = head, input_of(head, net, x)
    net.hybridize(**HYBRIDIZE[mode])
    trainer = make_trainer(variant, net, head, backbone)
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def step():
        if variant == FORWARD:
            net(x)
        else:
            with mx.autograd.record():
                value = loss(net(x), y)
            value.backward()
            trainer.step(options.batch)
        mx.nd.waitall()

    return step


def input_of(layer, net, x):
    """Return the input of a layer in a network that is not hybridized."""
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    net(x)
    handle.detach()
    return inputs[0]


def make_trainer(variant, net, head, backbone):
    arguments = ("sgd", {"learning_rate": 0.01, "momentum": 0.9})
    if variant == FORWARD:
        return None
    if variant in (TRAINED, ZERO, NULL):
        kept = head.collect_params()
        rest = [p for name, p in net.collect_params().items() if name not in kept and p.grad_req != "null"]
        for param in rest if variant != TRAINED else ():
            setattr(param, *(("lr_mult", 0) if variant == ZERO else ("grad_req", "null")))
        return mx.gluon.Trainer(net.collect_params(), *arguments)
    stages = [] if variant == CACHED else backbone[: int(variant.split()[0])]
    return multitrainer.MultiLRTrainer([net, *((stage, 0) for stage in stages)], *arguments)


def take_turns(variants, options):
    """Return the seconds of a step of each variant, round by round."""
    seconds = {variant: [] for variant in variants}
    for _ in range(options.rounds):
        for variant, found in seconds.items():
            step = make_step(variant, options, "static")
            for _ in range(WARM_UP):
                step()
            found.append(min(timed(step) for _ in range(TIMED)))
            del step
            gc.collect()
    return seconds


def timed(step):
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def peak(variant, mode, options):
    """Return the peak memory of this process after a few steps, in MB."""
    step = make_step(variant, options, mode)
    for _ in range(WARM_UP + 1):
        step()
    return machine.peak_memory()


def child(options, *what):
    """Measure in a new process: the times of variants ('times', ...), or the peak of one (mode, variant)."""
    setting = ["--network", options.network, "--pixels", options.pixels, "--batch", options.batch]
    command = [sys.executable, "-W", "ignore", __file__, *setting, "--rounds", options.rounds, "--child", *what]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}{command} ended with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(options):
    """Return one row for each variant, and how many stages the network has."""
    from gluoncv.model_zoo import get_model

    stages = len(multitrainer.stages(get_model(options.network, classes=10)))
    variants = [TRAINED, ZERO, NULL, *map(frozen, range(stages)), FORWARD, CACHED]
    modes = list(HYBRIDIZE)
    if options.quick:
        variants, modes = [TRAINED, ZERO, frozen(stages - 1), FORWARD], ["static"]
    seconds = child(options, "times", *variants)
    rows = {}
    for variant in variants:
        row = {"variant": variant, "milliseconds": 1e3 * statistics.median(seconds[variant])}
        for name, of in (("of all trained", TRAINED), ("of lr_mult=0", ZERO), ("of forward", FORWARD)):
            each = [one / other for one, other in zip(seconds[variant], seconds[of])]
            row[name] = {"median": statistics.median(each), "low": min(each), "high": max(each)}
        rows[variant] = row
    cases = [(mode, variant) for mode in modes for variant in variants]
    with ThreadPoolExecutor(machine.cores()) as pool:  # other processes do not change how much memory one takes
        peaks = dict(zip(cases, pool.map(lambda case: child(options, *case), cases)))
    for variant, row in rows.items():
        row["MB"] = {mode: peaks[mode, variant] for mode in modes}
        row["memory of lr_mult=0"] = peaks["static", variant] / peaks["static", ZERO]
    return list(rows.values()), stages


def goals(rows):
    """Compare the figures with all stages but the output frozen with the goals."""
    row = [row for row in rows if row["variant"].endswith("frozen")][-1]
    found = {}
    for name, (of, most) in GOALS.items():
        value = row[of]["median"] if isinstance(row[of], dict) else row[of]
        found[name] = {"of": of, "is": value, "at most": most, "reached": value <= most}
    return found


def label(variant, stages):
    """Return the name of a variant in the table."""
    if not variant.endswith("frozen"):
        return variant
    number = int(variant.split()[0])
    return "ours, all but the output frozen" if number == stages - 1 else f"ours, {number} of {stages} stages frozen"


def cells(result):
    """Yield the lines of the table, each as a list of cells."""
    stages = result["setting"]["stages"]
    modes = list(result["rows"][0]["MB"])
    yield ["", "step", "of the first row", *(f"peak memory, {HEADINGS[mode]}" for mode in modes)]
    for row in result["rows"]:
        ratio = row["of all trained"]
        spread = "" if row["variant"] == TRAINED else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
        memory = [f"{row['MB'][mode]:,.0f} MB" for mode in modes]
        time_ = f"{row['milliseconds']:,.0f} ms"
        yield [label(row["variant"], stages), time_, f"{ratio['median']:.2f}{spread}", *memory]


def table(result):
    """Return the table for the docs."""
    head, *lines = cells(result)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def show(result):
    lines = list(cells(result))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]))
    print("\nall stages frozen but the output:")
    for name, goal in result["goals"].items():
        verdict = "reached" if goal["reached"] else "not reached"
        print(f"  {name} {goal['of']}: {goal['is']:.3f}, at most {goal['at most']:.3f}: {verdict}")


def plot(result, fname):
    """Draw time and memory over the number of frozen stages."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rows = {row["variant"]: row for row in result["rows"]}
    ours = [row for variant, row in rows.items() if variant.endswith("frozen")]
    panels = {
        "time of a step [ms]": lambda row: row["milliseconds"],
        "peak memory [MB]": lambda row: row["MB"]["static"],
    }
    for axes, (name, value) in zip(figure.subplots(1, 2), panels.items()):
        axes.plot(range(len(ours)), list(map(value, ours)), "o-", label="first stages frozen (ours)")
        for color, variant in zip(("C3", "C1", "C2", "C4"), (ZERO, NULL, FORWARD, CACHED)):
            axes.axhline(value(rows[variant]), color=color, linestyle="--", label=variant)
        axes.set(xlabel="frozen stages", ylabel=name, ylim=(0, None), xticks=range(len(ours)))
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(fname, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50_v1b", help="one of GluonCV's; default: %(default)s")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="measure only what the goals need")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--plot", help="plot them to this image file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick and options.plot:
        parser.error("--quick measures too little for --plot")
    if options.child:
        what, *variants = options.child
        found = take_turns(variants, options) if what == "times" else peak(*variants, what, options)
        print(json.dumps(found))
        return
    rows, stages = compare(options)
    setting = {name: getattr(options, name) for name in ("network", "pixels", "batch", "rounds")}
    found = {"setting": {**setting, "stages": stages}, "goals": goals(rows), "rows": rows}
    result = record.describe(__file__, ("mxnet", "numpy", "gluoncv"), **found)
    show(result)
    if options.json:
        record.write_json(result, options.json)
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
