"""What a frozen backbone saves two workers: bytes on the wire and time of a training step, this package beside stock.

All processes are real and on one machine; the kernel counts what they send each other on the loopback interface, in a
network namespace of their own if the system allows one. Needs Linux, mxnet and multitrainer; Horovod for its rows, and
GluonCV for networks that are not in MXNet's own model zoo.

    python benchmarks/distributed.py [--only NAME ...] [--model NAME] [--pixels N] [--steps N] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import textwrap
import time
import traceback
from pathlib import Path

import machine
import processes
import record

WORKERS, BATCH, WARM_UP, LIMIT = 2, 4, 2, 150  # ranks, images a rank, steps before any is counted, seconds a job
STOCK = ("trained", "lr_mult=0", "grad_req='null'")  # what is done to the backbone, in turn
OURS = ("trained", "frozen", "half unfrozen")
ACCUMULATED, CYCLE = "accumulate=4", 4  # the steps of one update; servers that update know the first batch size only
SERVERS = {"update_on_kvstore": True}
JOBS = (  # section, trainer, kvstore, arguments of the trainer, phases
    ("sync", "gluon.Trainer", "dist_sync", {}, STOCK),
    ("sync", "MultiLRTrainer", "dist_sync", {}, (*OURS, ACCUMULATED)),
    ("server", "MultiLRTrainer", "dist_sync", SERVERS, OURS),
    ("async", "gluon.Trainer", "dist_async", {}, STOCK),
    ("async", "MultiLRTrainer", "dist_async", {}, OURS),
    ("horovod", "hvd.DistributedTrainer", "horovod", {}, STOCK),
    ("horovod", "DistributedMultiLRTrainer", "horovod", {}, (*OURS, ACCUMULATED)),
)
SECTIONS = {
    "sync": "dist_sync as each trainer does it by default: under stock the server updates, under ours the workers",
    "server": "dist_sync, update_on_kvstore=True",
    "async": "dist_async",
    "horovod": "Horovod with Gloo",
}
ROWS = {  # what the docs call them
    "sync": "`dist_sync`",
    "server": "`dist_sync`, `update_on_kvstore=True`",
    "async": "`dist_async`",
    "horovod": "Horovod, Gloo",
}
HEADINGS = ("trainer", "backbone", "values", "expected B", "measured B", "of all", "idle B", "ms a step", "of all")
WIDTHS = (25, 15, 10, 11, 11, 8, 7, 17, 6)
NOTES = f"""\
values: trained ones. Bytes are a step's, all processes of the {WORKERS} workers' job together; expected: of the float32
values alone; measured: with headers; idle: in as long a time without a step. Milliseconds are rank 0's, median and
(min to max). of all: of what the same trainer needs to train it all."""


def rank_main(number, folder, options):
    """Train as one rank, phase by phase; rank 0 writes what it measured to the folder."""
    import numpy as np

    np.bool = bool  # MXNet 1.9.1 reads it at import; NumPy 1.24 removed it.
    import mxnet as mx  # with DMLC_ROLE=scheduler or server a process serves here, then exits

    _, trainer_name, store, arguments, phases = JOBS[number]
    net, head, x = build(mx, options.model, options.pixels)
    rank, barrier, arguments = join(mx, store, arguments)
    trainer = make_trainer(mx, trainer_name, net, arguments)
    step = make_step(mx, net, x, trainer)
    kept = head.collect_params().keys()
    backbone = [p for name, p in net.collect_params().items() if name not in kept and p.grad_req != "null"]
    rows = []
    for phase in phases:
        set_backbone(phase, trainer, net, head, backbone)
        for _ in range(WARM_UP):  # the first ones trace the network and hand out the weights
            step()
        params = list(net.collect_params().values())
        values = sum(param.data().size for param in params if param.grad_req != "null")
        row = {"backbone": phase, "values": values, "parameters": len(params)}
        steps = -(-options.steps // CYCLE) * CYCLE if phase == ACCUMULATED else options.steps  # whole cycles
        rows.append({**row, **measure(step, steps, barrier)})
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    barrier()  # no rank ends while another still waits for an answer


def build(mx, name, pixels):
    """Return a network of ten classes, its last layer, and a batch."""
    try:
        net = mx.gluon.model_zoo.vision.get_model(name, classes=10)
    except ValueError:  # it knows no such name
        from gluoncv.model_zoo import get_model

        net = get_model(name, classes=10)
    mx.random.seed(7)
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    x = mx.nd.random.normal(shape=(BATCH, 3, pixels, pixels))
    with mx.autograd.train_mode():  # predicting would leave weights in a layout that no store can send
        net(x)  # shapes are known from here on
    return net, net.output if hasattr(net, "output") else net.fc, x


def join(mx, store, arguments):
    """Join the other ranks; return the rank, a barrier that first ends this rank's work, and a trainer's arguments."""
    if store == "horovod":
        import horovod.mxnet as hvd

        hvd.init()
        rank, meet = hvd.rank(), lambda: hvd.allreduce(mx.nd.ones(1), name="barrier").wait_to_read()
    else:
        store = mx.kv.create(store)
        rank, meet, arguments = store.rank, store._barrier, {**arguments, "kvstore": store}

    def barrier():
        mx.nd.waitall()
        meet()

    return rank, barrier, arguments


def make_trainer(mx, name, net, arguments):
    if name == "gluon.Trainer":
        kind = mx.gluon.Trainer
    elif name == "MultiLRTrainer":
        kind = importlib.import_module("multitrainer").MultiLRTrainer
    elif name == "hvd.DistributedTrainer":
        kind = importlib.import_module("horovod.mxnet").DistributedTrainer
    else:
        kind = importlib.import_module("multitrainer.horovod").DistributedMultiLRTrainer
    params = net if "MultiLR" in name else net.collect_params()
    return kind(params, "sgd", {"learning_rate": 1e-4, "momentum": 0.9}, **arguments)


def make_step(mx, net, x, trainer):
    """Return a function that makes one step, waits for its end and returns the seconds that it took."""

    def step():
        start = time.perf_counter()
        with mx.autograd.record():
            loss = net(x).square().mean()
        loss.backward()
        trainer.step(1)
        mx.nd.waitall()
        return time.perf_counter() - start

    return step


def set_backbone(phase, trainer, net, head, backbone):
    """Freeze or unfreeze the backbone as the phase says."""
    if phase == "frozen":
        trainer.set_lr_mult({net: 0, head: 1})
    elif phase == "half unfrozen":
        trainer.set_lr_mult(dict.fromkeys(last_half(backbone), 1))
    elif phase == ACCUMULATED:
        trainer.set_lr_mult({net: 1})
        trainer.accumulate = CYCLE
    elif phase != "trained":
        for param in backbone:
            param.lr_mult = 0
            param.grad_req = "null" if "null" in phase else "write"


def last_half(params):
    """Return the last Parameters that together hold at most half of the values."""
    left, last = sum(param.data().size for param in params) / 2, []
    for param in reversed(params):
        left -= param.data().size
        if left < 0:
            return last
        last.append(param)
    return last


def measure(step, steps, barrier):
    """Count and time the steps; then count for as long without steps."""
    seconds = []
    sent = bytes_during(lambda: seconds.extend(step() for _ in range(steps)), barrier)
    idle = bytes_during(lambda: time.sleep(sum(seconds)), barrier)
    return {"bytes": sent / steps, "idle": idle / steps, "seconds": seconds}


def bytes_during(action, barrier):
    """Return the bytes that all processes send while every rank does the action; barriers keep the count exact."""
    barrier()
    before = processes.loopback_bytes()
    barrier()
    action()
    barrier()
    after = processes.loopback_bytes()
    barrier()
    return after - before


def run(number, options):
    """Run a job and return what rank 0 measured; end all of its processes in any case."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        try:
            with log.open("w") as file:
                started = [processes.start(command, env, file) for command, env in commands(number, folder, options)]
            processes.wait_for_all(started, LIMIT)
            return json.loads(Path(folder, "rows.json").read_text())
        except Exception:
            sys.stderr.write(log.read_text())
            raise
        finally:
            processes.end_children()


def commands(number, folder, options):
    """Return each process to start, as a command and its environment."""
    work = [sys.executable, "-W", "ignore", os.path.abspath(__file__), "--rank", str(number), folder]
    work += ["--model", options.model, "--pixels", str(options.pixels), "--steps", str(options.steps)]
    if JOBS[number][2] == "horovod":
        horovodrun = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", str(WORKERS)]
        return [([*horovodrun, "-H", f"localhost:{WORKERS}", *work], {})]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_INTERFACE": "lo"}
    shared.update(DMLC_NUM_SERVER="1", DMLC_NUM_WORKER=str(WORKERS))
    return [(work, {**shared, "DMLC_ROLE": role}) for role in ["scheduler", "server"] + ["worker"] * WORKERS]


def expected_bytes(section, row):
    """Return the bytes of the float32 values: a rank pushes and pulls all, or under Horovod sends half twice."""
    updates_a_step = 1 / CYCLE if row["backbone"] == ACCUMULATED else 1
    return updates_a_step * bytes_of_an_update(section, row)


def bytes_of_an_update(section, row):
    each_way = WORKERS * 4 * row["values"]
    if section != "horovod":
        return 2 * each_way
    compared = row["parameters"] + 2 if "MultiLR" in row["trainer"] else 0  # ranks compare what is frozen
    return each_way + WORKERS * 4 * compared


def measure_job(number, options):
    """Return the rows of a job, or one row with the error if it failed."""
    section, trainer, *_ = JOBS[number]
    try:
        rows = run(number, options)
    except Exception as error:
        return [{"section": section, "trainer": trainer, "error": f"{type(error).__name__}: {error}"}]
    done = []
    for row in rows:
        row = {"section": section, "trainer": trainer, **row}
        row["milliseconds"] = 1e3 * statistics.median(row["seconds"])
        row["expected"] = expected_bytes(section, row)
        for ratio, figure in (("bytes_ratio", "bytes"), ("time_ratio", "milliseconds")):
            row[ratio] = row[figure] / (done[0] if done else row)[figure]
        done.append(row)
    return done


def show(row):
    if "error" in row:
        return f"{row['trainer']}: could not be measured: {textwrap.shorten(row['error'], 90)}"
    low, high = 1e3 * min(row["seconds"]), 1e3 * max(row["seconds"])
    numbers = [f"{row[key]:,.0f}" for key in ("values", "expected", "bytes")]
    times = f"{row['milliseconds']:.0f} ({low:.0f} to {high:.0f})"
    bytes_ratio, time_ratio = f"{100 * row['bytes_ratio']:.2f} %", f"{100 * row['time_ratio']:.0f} %"
    return line(row["trainer"], row["backbone"], *numbers, bytes_ratio, f"{row['idle']:,.0f}", times, time_ratio)


def line(*cells):
    words, numbers = zip(cells[:2], WIDTHS), zip(cells[2:], WIDTHS[2:])
    return "  ".join([cell.ljust(width) for cell, width in words] + [cell.rjust(width) for cell, width in numbers])


def table(result):
    """Return the table for the docs."""
    columns = {
        "stock, all trained": (False, "trained"),
        "stock, `lr_mult=0`": (False, "lr_mult=0"),
        "ours, all trained": (True, "trained"),
        "ours, frozen": (True, "frozen"),
        "ours, half unfrozen": (True, "half unfrozen"),
    }
    found = {(row["section"], "MultiLR" in row["trainer"], row.get("backbone")): row for row in result["rows"]}
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    for section, name in ROWS.items():
        if (section, True, "trained") in found:
            cells = [cell(found.get((section, *column))) for column in columns.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row):
    if row is None:  # by default, the servers update under stock
        return "as above"
    megabytes = row["bytes"] / 1e6
    return f"{megabytes:.{1 if megabytes > 1 else 2}f} MB, {row['milliseconds']:.0f} ms"


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--model", default="resnet18_v1", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--pixels", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps to measure; default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--no-namespace", action="store_true", help="count on the loopback of the whole machine")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be 1 or more")
    return options


def main(arguments=None):
    options = parse(arguments)
    if options.rank:
        try:
            rank_main(int(options.rank[0]), options.rank[1], options)
        except Exception:  # a server ends by SystemExit
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # at a normal exit, an MXNet worker waits for the others
        return 0
    os.environ["OMP_NUM_THREADS"] = str(max(1, machine.cores() // WORKERS))  # of each process
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    own = not options.no_namespace and processes.isolate_network()
    horovod = importlib.util.find_spec("horovod") is not None
    setting = {"model": options.model, "pixels": options.pixels, "batch": BATCH, "steps": options.steps}
    packages = ["mxnet", "numpy", *["horovod"] * horovod]
    result = record.describe(__file__, packages, arguments, setting=setting, namespace=own)
    known = {**result["versions"], "cores": result["cores"], **setting}
    print(", ".join(f"{name} {value}" for name, value in known.items()))
    print(NOTES)
    if not own:
        print("WARNING: no network namespace: other programs that use the loopback interface are counted too.")
    print("\n" + line(*HEADINGS))
    rows = []
    for section in [name for name in SECTIONS if name in (options.only or SECTIONS)]:
        print(f"\n-- {SECTIONS[section]} [{section}]", flush=True)
        if section == "horovod" and not horovod:
            print("skipped: Horovod is not installed")
            continue
        for number in [number for number, job in enumerate(JOBS) if job[0] == section]:
            done = measure_job(number, options)
            print("\n".join(map(show, done)), flush=True)
            rows.extend(done)
    if options.json:
        record.write_json({**result, "rows": rows}, options.json)
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
