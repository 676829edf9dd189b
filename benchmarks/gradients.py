"""What gradient clipping and update ratios cost, as parts of a training step and of the update alone.

    python benchmarks/gradients.py [--rounds N] [--quick] [--json FILE]

ResNet-50 at 224 pixels, a batch of 8, SGD with momentum, on the CPU: MultiLRTrainer as it is, with max_grad_norm, with
grad_norms() after each step, with the update ratios on, and with update_ratios() after each step; beside stock Trainer
and stock Trainer with gluon.utils.clip_global_norm. In every round each trains one step, in turn, and then makes
one update of the same gradients. A figure is the median over the rounds of its time as a part of the time of
MultiLRTrainer as it is, or of stock Trainer, in the same round.
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

STOCK, BY_HAND = "`Trainer`", "`Trainer`, `clip_global_norm`"
PLAIN, CLIPPED = "`MultiLRTrainer`", "`max_grad_norm`"
NORMS, MEASURED, RATIOS = "`grad_norms()` after each step", "update ratios on", "`update_ratios()` after each step"
WHO = [STOCK, BY_HAND, PLAIN, CLIPPED, NORMS, MEASURED, RATIOS]
BASE = {BY_HAND: STOCK, CLIPPED: PLAIN, NORMS: PLAIN, MEASURED: PLAIN, RATIOS: PLAIN}
GOALS = {CLIPPED: 1.05, RATIOS: 1.1}  # of a whole step
MAX_NORM = 0.01  # below the norms here, so that every step is clipped
SETTINGS = {"learning_rate": 1e-6, "momentum": 0.9, "wd": 1e-4}
BEFORE = 1  # rounds before the clock starts


def contestants(net):
    """Return a step function for each contestant; all train the same network."""
    params = net.collect_params()
    trained = [param for param in params.values() if param.grad_req != "null"]
    stock, by_hand = (gluon.Trainer(params, "sgd", dict(SETTINGS)) for _ in range(2))
    groups = [net, (net.features, 0.1)]
    plain, clipped, norms, measured, ratios = (
        multitrainer.MultiLRTrainer(groups, "sgd", dict(SETTINGS), max_grad_norm=MAX_NORM if who == CLIPPED else None)
        for who in WHO[2:]
    )
    measured.update_ratios()
    ratios.update_ratios()

    def clip_and_step(batch_size):
        by_hand.allreduce_grads()
        gluon.utils.clip_global_norm([param.grad() for param in trained], MAX_NORM * batch_size)
        by_hand.update(batch_size)

    def step_and(trainer, ask):
        def step(batch_size):
            trainer.step(batch_size)
            ask()

        return step

    steps = [stock.step, clip_and_step, plain.step, clipped.step]
    steps += [step_and(norms, norms.grad_norms), measured.step, step_and(ratios, ratios.update_ratios)]
    return dict(zip(WHO, steps))


def measure(network, pixels, batch, rounds):
    net = getattr(gluon.model_zoo.vision, network)()
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True)
    x, y = mx.nd.random.normal(shape=(batch, 3, pixels, pixels)), mx.nd.zeros(batch)
    net(x).wait_to_read()
    steps, loss = contestants(net), gluon.loss.SoftmaxCrossEntropyLoss()
    whole, update = ({who: [] for who in WHO} for _ in range(2))
    for number in range(rounds + BEFORE):
        at = number % len(WHO)
        for who in WHO[at:] + WHO[:at]:
            mx.nd.waitall()
            begin = time.perf_counter()
            with autograd.record():
                value = loss(net(x), y)
            value.backward()
            steps[who](batch)
            mx.nd.waitall()
            middle = time.perf_counter()
            for param in net.collect_params().values():
                if param.grad_req != "null":
                    param.data()._fresh_grad = True
            again = time.perf_counter()
            steps[who](batch)
            mx.nd.waitall()
            if number >= BEFORE:
                whole[who].append(middle - begin)
                update[who].append(time.perf_counter() - again)
    return [row_of(who, whole, update) for who in WHO]


def row_of(who, whole, update):
    row = {"who": who, "base": BASE.get(who)}
    for name, seconds in (("step", whole), ("update", update)):
        row[f"{name} ms"] = 1e3 * statistics.median(seconds[who])
        if who in BASE:
            ratios = [mine / base for mine, base in zip(seconds[who], seconds[BASE[who]])]
            row[name] = statistics.median(ratios)
            row[f"{name} range"] = [min(ratios), max(ratios)]
    # The additional time of `step` is less than the noise of a whole training step.
    if who in BASE:
        longer = [mine - base for mine, base in zip(update[who], update[BASE[who]])]
        row["share"] = statistics.median(more / step for more, step in zip(longer, whole[BASE[who]]))
    if who in GOALS:
        row["goal"], row["held"] = GOALS[who], 1 + row["share"] <= GOALS[who]
    return row


def table(result):
    """Return the rows as a Markdown table."""
    lines = [
        "| ResNet-50, batch 8 | training step | compared with | ratio | `step` alone | ratio | additional time |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        cells = [row["who"], f"{row['step ms']:,.0f} ms", row["base"] or ""]
        cells.append(f"{row['step']:.2f}" if row["base"] else "")
        cells += [f"{row['update ms']:.1f} ms", f"{row['update']:.2f}" if row["base"] else ""]
        cells.append(f"{row['share']:+.1%}" if row["base"] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a small network, two rounds")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    sizes = ("resnet18_v1", 32, 2, 2) if arguments.quick else ("resnet50_v1", 224, 8, arguments.rounds)
    rows = measure(*sizes)
    result = record.describe(__file__, ("mxnet", "numpy", "multitrainer"), rows=rows)
    print(table(result))
    if arguments.json:
        record.write_json(result, arguments.json)


if __name__ == "__main__":
    main()
