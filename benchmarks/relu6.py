"""What ReLU6 costs MobileNet v2 under MXNet, and what helps.

    python benchmarks/relu6.py [--rounds N] [--quick] [--json FILE]

MXNet computes ReLU6 as `clip`, which MKL-DNN does not have in training, so that around each of them the activations are
copied to MXNet's own layout and back. Measured in turn, each in a process of its own, batches of 8 images of 224
pixels: the network as it is, with ReLU in place of ReLU6, the same limited to AVX2 (on a CPU with AVX-512, MKL-DNN
blocks 8 channels in some layers and 16 in others, and then BatchNorm's backward pass is slow), predictions after
`optimize_for`, and MobileNet. Steps of `MultiLRTrainer` with everything trained and with all but the output frozen, and
predictions. A minute on two idle cores.
"""

from __future__ import annotations

import argparse
import statistics

import machine
import record
import turns
from whole_step import BACKBONE, FORWARD, OURS, PIXELS, TRAINED, Case, import_mxnet, mxnet_step

PARTS = (TRAINED, BACKBONE, FORWARD)
ORIGINAL = "`mobilenetv2_1.0`"
RELU, RELU_AVX2 = "with ReLU in place of ReLU6", "the same, `DNNL_MAX_CPU_ISA=AVX2`"
OPTIMIZED, OTHER = "after `optimize_for(x, 'MKLDNN')`", "`mobilenet1.0`"
WAYS = {  # network, environment, parts
    ORIGINAL: ("mobilenetv2_1.0", {}, PARTS),
    RELU: ("mobilenetv2_1.0", {}, PARTS),
    RELU_AVX2: ("mobilenetv2_1.0", {"DNNL_MAX_CPU_ISA": "AVX2"}, PARTS),
    OPTIMIZED: ("mobilenetv2_1.0", {}, (FORWARD,)),
    OTHER: ("mobilenet1.0", {}, PARTS),
}


def build(way, case):
    """Return a function that makes one step, and None."""
    mx, model_zoo = import_mxnet()
    if way in (RELU, RELU_AVX2):
        model_zoo.mobilenet.ReLU6 = lambda: mx.gluon.nn.Activation("relu")
    return mxnet_step(case, OURS, optimize if way == OPTIMIZED else None)[0], None


def optimize(net, x):
    """Let MKL-DNN join each convolution with what follows it; for predictions only."""
    net.optimize_for(x, backend="MKLDNN", static_alloc=True, static_shape=True)


def compare(parts, rounds, batch, pixels):
    """Return one row for each way."""
    rows = {way: {"way": way} for way in WAYS}
    for part in parts:
        cases = {way: Case(network, batch, part, pixels) for way, (network, _, some) in WAYS.items() if part in some}
        contestants = {way: (build, (way, case), WAYS[way][1]) for way, case in cases.items()}
        _, seconds, _ = turns.take_turns(contestants, (rounds, rounds))
        for way, found in seconds.items():
            rows[way][part] = {
                "images/s": batch / statistics.median(found),
                "of the first row": statistics.median(one / first for one, first in zip(found, seconds[ORIGINAL])),
            }
    return list(rows.values())


def table(result):
    """Return the table for the docs."""
    lines = [f"| images/s (time, of the first row) | {' | '.join(PARTS)} |", "|---" + "|--:" * len(PARTS) + "|"]
    for row in result["rows"]:
        found = [row.get(part) for part in PARTS]
        cells = [f"{each['images/s']:.0f} ({each['of the first row']:.2f})" if each else "" for each in found]
        lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one prediction of two small images, to check it")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    machine.use_all_cores()
    rows = compare(*((FORWARD,), 1, 2, 32) if options.quick else (PARTS, options.rounds, 8, PIXELS))
    print(table({"rows": rows}))
    if options.json:
        record.write_json(record.describe(__file__, ("mxnet", "numpy", "gluoncv"), rows=rows), options.json)


if __name__ == "__main__":
    main()
