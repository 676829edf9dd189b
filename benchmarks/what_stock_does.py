"""Per-layer learning rates in stock MXNet: what a user expects, and what happens, measured in this run.

Needs mxnet, numpy and (for two cases) gluoncv; multitrainer itself is not imported.

    python benchmarks/what_stock_does.py [--quick] [--only NAME ...] [--races N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from itertools import zip_longest
from pathlib import Path

import numpy as np

import machine

if __name__ == "__main__":
    machine.use_all_cores()  # MXNet reads it when it is imported
np.bool = bool  # MXNet 1.9.1 reads it at import; NumPy 1.24 removed it.
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import mxnet as mx  # noqa: E402  (with DMLC_ROLE=scheduler or server a process serves here, then exits)
from mxnet import autograd, gluon  # noqa: E402
from mxnet.gluon import nn  # noqa: E402

import record  # noqa: E402

sys.modules["torch"] = None  # beside PyTorch 2, GluonCV refuses to be imported
import gluoncv  # noqa: E402, F401

del sys.modules["torch"]

WIDTHS = (45, 25, 39, 4)
NETWORKS = {"full": ("resnet50_v1b", 224, 5), "quick": ("cifar_resnet20_v1", 32, 5)}  # name, pixels, rounds
COSTS = {
    "everything trains": "the yardstick",
    "backbone lr_mult=0": "about as cheap as grad_req='null'",
    "backbone grad_req='null'": "no backward through the backbone",
    "forward only": "the least a step can cost",
}


def row(tried, expected, stock, held=None, **figures):
    """Make a row: `stock` is a template for the figures, and `held` says whether the expectation was met."""
    return {"tried": tried, "expected": expected, "stock": stock.format(**figures), "held": held, "figures": figures}


def stays(tried, before, after):
    nan, total = sum(int(np.isnan(a).sum()) for a in after), sum(a.size for a in after)
    if nan:
        return row(tried, "moves by 0", "{nan} of {total} values are nan", False, nan=nan, total=total)
    distance = moved(before, after)
    return row(tried, "moves by 0", "moved {moved:.2g}", distance == 0, moved=distance)


def toy_net(*more):
    mx.random.seed(7)
    net = nn.HybridSequential(prefix="toy_")
    with net.name_scope():
        net.add(nn.Dense(8, in_units=4, activation="tanh"), nn.Dense(1, in_units=8), *more)
    net.initialize(mx.init.Xavier())
    return net


def toy_steps(net, trainer, steps, seed=0):
    rng = np.random.RandomState(seed)
    x, y = mx.nd.array(rng.randn(16, 4)), mx.nd.array(rng.randn(16, 1) + 2)
    for _ in range(steps):
        with autograd.record():
            loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        trainer.step(1)


def toy_run(optimizer, options, change=None, warm_up=0):
    """Train `warm_up` steps, change the first layer, train 3 steps; return its values before and after these."""
    net = toy_net()
    trainer = gluon.Trainer(net.collect_params(), optimizer, options)
    toy_steps(net, trainer, warm_up)
    if change:
        change(net[0], trainer)
    before = values(net[0])
    toy_steps(net, trainer, 3)
    return before, values(net[0])


def freeze(layer, trainer):
    layer.collect_params().setattr("lr_mult", 0)


def values(block, select=None):
    return [p.data().asnumpy().copy() for p in block.collect_params(select).values()]


def moved(before, after):
    return max(float(np.abs(a - b).max()) for a, b in zip(after, before))


def lr_mult_zero(options):
    for name in ("adadelta", "ftrl", "ftml", "sgld"):
        tried = f"{name}: a layer with lr_mult=0, 3 steps"
        try:
            yield stays(tried, *toy_run(name, {}, freeze))
        except Exception as error:
            yield row(tried, "moves by 0", "raises {error}", False, error=reason(error))
    for name in ("sgd", "nag", "lars", "lbsgd"):
        tried = f"{name}, momentum 0.9: 5 steps, then lr_mult=0, 3 more"
        yield stays(tried, *toy_run(name, {"learning_rate": 0.1, "momentum": 0.9}, freeze, warm_up=5))


def batchnorm(options):
    changed, total = run_all(["batchnorm"])[0]
    tried = "cifar_resnet20_v1: backbone with lr_mult=0, 1 step"
    stock = "{changed} of {total} arrays changed"
    yield row(tried, "statistics stay", stock, changed == 0, changed=changed, total=total)


def worker_batchnorm():
    step, trainer = make_step("backbone lr_mult=0", "quick")
    step()  # shapes are known from here on
    statistics = [p for p in trainer._params if "running_" in p.name]
    before = [p.data().asnumpy().copy() for p in statistics]
    step()
    return sum(bool((p.data().asnumpy() != old).any()) for p, old in zip(statistics, before)), len(statistics)


def adadelta(options):
    start, plain = toy_run("adadelta", {})
    tenth = toy_run("adadelta", {}, lambda layer, trainer: layer.collect_params().setattr("lr_mult", 0.1))[1]
    figures = {"apart": moved(plain, tenth), "moved": moved(start, plain)}
    tried = "adadelta: 3 steps with lr_mult=1, 3 with lr_mult=0.1"
    stock = "ends {apart:.2g} apart, having moved {moved:.2g}"
    yield row(tried, "the second moves less", stock, figures["apart"] > 0, **figures)


def cost(options):
    # All that is large runs in children, because the peak of a child begins with the size of its parent.
    size = "quick" if options.quick else "full"
    peaks = {variant: run_all(["memory", variant, size])[0] for variant in COSTS}
    times = run_all(["times", size])[0]
    trains, dear, cheap = list(COSTS)[:3]
    typical = {variant: float(np.median(rounds)) for variant, rounds in times.items()}
    for variant, expected in COSTS.items():
        ratios = [one / yardstick for one, yardstick in zip(times[variant], times[trains])]
        figures = {"ms": 1e3 * typical[variant], "ratio": float(np.median(ratios)), **peaks[variant]}
        figures.update(low=min(ratios), high=max(ratios), rounds=len(ratios))
        stock = "x {ratio:.2f} ({low:.2f}..{high:.2f}), {peak_mb} MB, {states} momenta"
        if variant == trains:
            stock = "{ms:.0f} ms, {peak_mb} MB, {states} momenta; medians and min..max of {rounds} interleaved rounds"
        held = typical[dear] < 1.2 * typical[cheap] if variant == dear else None
        network, pixels, _ = NETWORKS[size]
        yield row(f"{network}, {pixels} px, batch 8: {variant}", expected, stock, held, **figures)


def build(name):
    from gluoncv.model_zoo import get_model

    mx.random.seed(7)
    net = get_model(name, pretrained=False)
    net.initialize(mx.init.Xavier())
    return net


def make_step(variant, size):
    """Return a function that makes one step and waits for its end, and the trainer."""
    name, pixels, _ = NETWORKS[size]
    net = build(name)
    net.hybridize(static_alloc=True, static_shape=True)
    x = mx.nd.random.normal(shape=(8, 3, pixels, pixels))
    head = (net.fc if hasattr(net, "fc") else net.output).collect_params().keys()
    for parameter in [p for n, p in net.collect_params().items() if n not in head and p.grad_req != "null"]:
        if "lr_mult" in variant:
            parameter.lr_mult = 0
        elif "null" in variant:
            parameter.grad_req = "null"
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1e-4, "momentum": 0.9})

    def step():
        if variant == "forward only":
            net(x)
        else:
            with autograd.record():
                loss = net(x).square().mean()
            loss.backward()
            trainer.step(1)
        mx.nd.waitall()

    return step, trainer


def worker_memory(variant, size):
    step, trainer = make_step(variant, size)
    for _ in range(2):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    states = sum(state is not None for state in trainer._updaters[0].states.values())
    return {"peak_mb": round(peak / 1024), "states": states}


def worker_times(size):
    """Time the variants in turn, so that other load on the machine meets all of them."""
    steps = {variant: make_step(variant, size)[0] for variant in COSTS}
    times = {variant: [] for variant in COSTS}
    for number in range(1 + NETWORKS[size][2]):
        for variant, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first traces and allocates
                times[variant].append(time.perf_counter() - start)
    return times


def servers(options):
    ranks = cluster("servers", "0")
    late = "then trainer.set_learning_rate(0), 3 more steps"
    for key, tried in (("frozen", "a layer with lr_mult=0, 3 steps"), ("late", late)):
        low, high = (pick(rank[key] for rank in ranks) for pick in (min, max))
        stock = "moved {low:.2g} to {high:.2g} on {ranks} ranks"
        yield row(tried, "moves by 0", stock, high == 0, low=low, high=high, ranks=len(ranks))


def worker_rank(updates, lr_mult):
    """Train as one rank; return all weights after the first step, and how far the frozen ones moved."""
    store = mx.kv.create("dist_sync")
    net = toy_net()
    net[0].collect_params().setattr("lr_mult", float(lr_mult))
    setting = {"kvstore": store, "update_on_kvstore": None if updates == "servers" else False}
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1}, **setting)
    start = values(net[0])
    toy_steps(net, trainer, 1, seed=store.rank)
    first = np.concatenate([v.ravel() for v in values(net)]).tolist()
    toy_steps(net, trainer, 2, seed=store.rank)
    frozen, later = moved(start, values(net[0])), values(net)
    trainer.set_learning_rate(0)
    toy_steps(net, trainer, 3, seed=store.rank)
    return {"first": first, "frozen": frozen, "late": moved(later, values(net))}


def module_set_lr_mult(options):
    weight, bias = {"conv1_weight": 0}, {"conv1_bias": 0}
    for tried, calls, frozen in (
        ("set_lr_mult({'conv1_weight': 0})", [weight], weight),
        ("set_lr_mult({'conv1_weight': 0}), then set_lr_mult({'conv1_bias': 0})", [weight, bias], {**weight, **bias}),
        ("set_lr_mult({'conv1_weight': 0, 'conv1_bias': 0})", [{**weight, **bias}], {**weight, **bias}),
    ):
        figures = module_run(calls)
        expected = "conv1_weight stays" if frozen is weight else "both stay, and the output with them"
        stock = "output {before:.4f} -> {after:.4f}; weight moved {conv1_weight:.2g}, bias {conv1_bias:.2g}"
        yield row(tried, expected, stock, all(figures[name] == 0 for name in frozen), **figures)


def module_run(calls):
    mx.random.seed(7)
    convolution = mx.sym.Convolution(mx.sym.Variable("data"), name="conv1", kernel=(3, 3), num_filter=1)
    loss = mx.sym.LinearRegressionOutput(mx.sym.flatten(convolution), mx.sym.Variable("label"))
    module = mx.mod.Module(loss, label_names=["label"])
    module.bind(data_shapes=[("data", (1, 1, 3, 3))], label_shapes=[("label", (1, 1))])
    module.init_params(mx.init.Uniform(0.1))
    optimizer = mx.optimizer.create("sgd", learning_rate=0.05, sym=loss)
    module.init_optimizer(optimizer=optimizer)
    for multipliers in calls:
        optimizer.set_lr_mult(multipliers)
    batch = mx.io.DataBatch([mx.nd.ones((1, 1, 3, 3))], [mx.nd.full((1, 1), -2)])

    def look():
        module.forward(batch, is_train=False)
        arrays = {name: v.asnumpy() for name, v in module.get_params()[0].items()}
        return float(module.get_outputs()[0].asscalar()), arrays

    before, start = look()
    for _ in range(4):
        module.forward_backward(batch)
        module.update()
    after, end = look()
    return {"before": before, "after": after, **{name: moved([start[name]], [end[name]]) for name in start}}


def gluon_set_lr_mult(options):
    def name_them(layer, trainer):
        trainer.optimizer.set_lr_mult(dict.fromkeys(layer.collect_params(), 0))

    tried = "trainer.optimizer.set_lr_mult({name: 0, ...}) for a layer, 3 steps"
    yield stays(tried, *toy_run("sgd", {"learning_rate": 0.1}, name_them))


def export(options):
    net = toy_net()
    freeze(net[0], None)
    net.hybridize()
    net(mx.nd.ones((1, 4)))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "toy")
        net.export(path)
        nodes = json.loads(Path(path + "-symbol.json").read_text())["nodes"]
        block = gluon.SymbolBlock.imports(path + "-symbol.json", ["data"], path + "-0000.params")
    written = [n["name"] for n in nodes if float(n.get("attrs", {}).get("__lr_mult__", 1)) == 0]
    read = sorted({float(block.collect_params()[name].lr_mult) for name in written})
    before = values(block, "|".join(written))
    toy_steps(block, gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": 0.1}), 3)
    figures = {"written": len(written), "read": read, "moved": moved(before, values(block, "|".join(written)))}
    stock = "__lr_mult__ 0 in the file for {written}, read as {read}; they moved {moved:.2g} in 3 steps"
    tried = "export() with lr_mult=0 on a weight and a bias, then SymbolBlock.imports()"
    yield row(tried, "they come back with 0", stock, read == [0], **figures)


def states(options):
    def parameters(lr_mult=1.0):
        both = [gluon.Parameter(name, shape=(1,), init="ones", lr_mult=lr_mult) for name in ("a", "b")]
        for parameter in both:
            parameter.initialize()
        return both

    def momenta(trainer):
        return {p.name: float(trainer._updaters[0].states[i].asscalar()) for i, p in enumerate(trainer._params)}

    a, b = parameters(lr_mult=0.5)
    setting = {"learning_rate": 0.1, "momentum": 0.9}
    saved = gluon.Trainer([a, b], "sgd", setting)
    with autograd.record():
        loss = a.data() + 5 * b.data()
    loss.backward()
    saved.step(1)
    swapped = gluon.Trainer(parameters()[::-1], "sgd", setting)
    slower = gluon.Trainer(parameters(), "sgd", {**setting, "learning_rate": 0.03})
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trainer.states")
        saved.save_states(path)
        swapped.load_states(path)
        slower.load_states(path)
    was, now = momenta(saved), momenta(swapped)
    stock = "a {was[a]:.2g} -> {now[a]:.2g}, b {was[b]:.2g} -> {now[b]:.2g}"
    yield row("momentum saved as [a, b], loaded as [b, a]", "each has its own", stock, was == now, was=was, now=now)
    rate, mult = slower.learning_rate, slower._params[0].lr_mult
    tried = "saved at learning rate 0.1, loaded by a trainer made with 0.03"
    yield row(tried, "the new trainer's 0.03", "{rate}", rate == 0.03, rate=rate)
    yield row("saved with lr_mult=0.5, loaded", "lr_mult is 0.5", "lr_mult is {mult}", mult == 0.5, mult=mult)


def global_stats(options):
    net = toy_net(nn.BatchNorm(in_channels=1))
    net.hybridize()
    x = mx.nd.random.normal(1, 2, shape=(16, 4))

    def train_against_predict():
        with autograd.record():
            trained = net(x)
        return float((trained - net(x)).abs().max().asscalar())

    train_against_predict()
    net[-1]._kwargs["use_global_stats"] = True
    for tried in ("use_global_stats set on the BatchNorm", "the same, then net.hybridize() again"):
        apart = train_against_predict()
        yield row(tried, "train and predict agree", "outputs {apart:.2g} apart", apart < 1e-5, apart=apart)
        net.hybridize()


def races(options):
    right = np.array(cluster("servers", "1")[0]["first"])
    wrong, worst = 0, 0.0
    for _ in range(options.races):
        off = max(float(np.abs(rank["first"] - right).max()) for rank in cluster("workers", "1"))
        wrong += off > 1e-4  # another order of summation differs by 1e-7, a gradient in place of a weight by far more
        worst = max(worst, off)
    stock = "{wrong} of {runs} runs had a rank that started from garbage, off by up to {worst:.2g}"
    tried = "weights after the first step, against those of update_on_kvstore=True"
    yield row(tried, "the same on every rank", stock, wrong == 0, wrong=wrong, runs=options.races, worst=worst)


def cluster(updates, lr_mult, workers=2):
    """Run ranks on ps-lite over loopback, with a scheduler and a server; return their answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_INTERFACE": "lo"}
    shared.update(DMLC_NUM_SERVER="1", DMLC_NUM_WORKER=str(workers))
    roles = ["scheduler", "server"] + ["worker"] * workers
    environments = [{**shared, "DMLC_ROLE": role} for role in roles]
    return run_all(["rank", updates, lr_mult], environments, limit=60)[2:]


def run_all(arguments, environments=({},), limit=240):
    """Run a worker of this file once per environment; return the answers. A failure or the limit ends all."""
    command, pipe = [sys.executable, os.path.abspath(__file__), "--worker", *arguments], subprocess.PIPE
    processes, deadline = [], time.monotonic() + limit
    try:
        for one in environments:
            processes.append(subprocess.Popen(command, env={**os.environ, **one}, stdout=pipe, stderr=pipe, text=True))
        codes = [None]
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.05)
            codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        outputs = [process.communicate() for process in processes]
    for code, (_, errors) in zip(codes, outputs):
        if code:
            raise RuntimeError(f"exit status {code}: {last_line(errors)}")
    if None in codes:
        raise RuntimeError(f"not done within {limit} s")
    return [json.loads(last_line(out) or "null") for out, _ in outputs]


def last_line(text):
    return (text.strip().splitlines() or [""])[-1]


def reason(error):
    kind = type(error).__name__ + ": "  # messages of MXNet begin with it
    return textwrap.shorten(kind + last_line(str(error)).replace(kind, ""), 120)


CASES = {
    "freeze": (lr_mult_zero, "lr_mult = 0 is not a freeze"),
    "batchnorm": (batchnorm, "BatchNorm under lr_mult = 0"),
    "adadelta": (adadelta, "A multiplier that does nothing"),
    "cost": (cost, "What lr_mult = 0 costs: time of a step, peak memory (ru_maxrss of one process, imports included)"),
    "servers": (servers, "dist_sync, update on the servers (stock default): scheduler, server, 2 workers on loopback"),
    "module": (module_set_lr_mult, "Optimizer.set_lr_mult under Module: a convolution of 1 filter, 4 updates"),
    "gluon": (gluon_set_lr_mult, "Optimizer.set_lr_mult under a Gluon Trainer"),
    "export": (export, "An exported network"),
    "states": (states, "save_states and load_states"),
    "global-stats": (global_stats, "BatchNorm on its running statistics, after a hybridized forward"),
    "races": (races, "dist_sync, update_on_kvstore=False, 2 workers: whether ranks start with the same weights"),
}


def measure(name, options):
    rows = []
    try:
        rows.extend(CASES[name][0](options))
    except Exception as error:
        rows.append(row("could not run", "", "{reason}", reason=reason(error)))
    return [{"case": name, **one} for one in rows]


def line(*cells):
    columns = [textwrap.wrap(cell, width) for cell, width in zip(cells, WIDTHS)]
    parts = zip_longest(*columns, fillvalue="")
    return "\n".join("  ".join(map(str.ljust, part, WIDTHS)).rstrip() for part in parts)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller network in the case 'cost'")
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--races", type=int, default=0, metavar="N", help="start N clusters for the case 'races'")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if "races" in (options.only or ()) and not options.races:
        parser.error("the case 'races' needs --races N")
    return options


def main(arguments=None):
    warnings.simplefilter("ignore")
    options = parse(arguments)
    if options.worker:
        kind, *rest = options.worker
        print(json.dumps(globals()["worker_" + kind](*rest)))
        return
    result = record.describe(__file__, ["mxnet", "numpy"], arguments)
    known = {**result["versions"], "cores": result["cores"]}
    print(", ".join(f"{name} {version}" for name, version in known.items()) + "\n")
    print(line("what was tried", "what a user expects", "what stock MXNet does", "held"))
    rows = []
    for name in [name for name in CASES if name in (options.only or CASES) and (name != "races" or options.races)]:
        print(f"\n-- {CASES[name][1]} [{name}]", flush=True)
        for one in measure(name, options):
            print(line(one["tried"], one["expected"], one["stock"], {True: "yes", False: "NO", None: "-"}[one["held"]]))
            rows.append(one)
    if options.json:
        record.write_json({**result, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
