"""``multitrainer finetune``: fine-tune one of GluonCV's classifiers, a learning rate for each part of it."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import mxnet as mx
from mxnet import gluon

from .. import MultiLRTrainer, ParamGroup
from . import artifacts, data, digits, figures, network
from .errors import INTERRUPTED, UserError
from .options import not_negative, parse_contexts, parse_multiplier, parse_optimizer, positive, whole
from .ranks import KVSTORES, Ranks, together
from .resume import Checkpoints
from .training import Interrupts, fit, seed_everything

MODEL = "mobilenetv2_1.0"
BACKBONE_MULT = 0.1
BATCH_SIZE = 32
EPOCHS = 10
NEEDS_DATA = ("model", "pretrained", "params", "lr_mult", "freeze", "workers")
OF_EACH_RANK = ("data", "params", "out", "ctx", "workers", "run")  # what need not be the same on all ranks
OF_EACH_START = (*OF_EACH_RANK, "kvstore", "resume")  # nor when a run goes on

DESCRIPTION = """\
Fine-tune an image classifier of GluonCV's on your images, with a learning rate for each part of it.

DIR holds a folder of images (.jpg, .png) for each class, or train/ and val/ with such folders. Without val/, one image
in five of every class is set aside to measure on. The network's last layer is replaced by one for your classes.

Without --data it runs on scikit-learn's digits instead: it trains on 0 to 4, then fine-tunes on ten images each of 5
to 9 in four ways, and compares them. That takes about two minutes on two cores."""

EPILOG = f"""\
PATH is an attribute path, as in Python: features, features.0, layer1, output, fc.weight. A wrong one is answered with
what there is. With --pretrained or --params, and neither --lr-mult nor --freeze, everything but the new last layer
trains at {BACKBONE_MULT} of --lr; from scratch, everything trains at --lr.

Left in --out: best.params and last.params, classes.txt (one a line, in the order of the outputs), metrics.jsonl (one
line an epoch), finetune.png and a checkpoint. Ctrl-C keeps what there is; after it, or after a crash, the same command
with --resume goes on after the last whole epoch, to the same metrics as if it had never stopped.

On several machines, --kvstore dist_sync under the DMLC_ variables of MXNet's parameter servers, or --kvstore horovod
under horovodrun: each rank trains on its share of the images, and rank 0 prints and writes. The README shows both.

examples:
  multitrainer finetune
  multitrainer finetune --data flowers --pretrained
  multitrainer finetune --data flowers --model resnet50_v1b --pretrained --freeze conv1 --lr-mult layer4=0.3
  multitrainer finetune --data flowers --params runs/finetune/best.params --freeze features --ctx 'gpu(0),gpu(1)'"""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "finetune",
        help="fine-tune an image classifier on a folder of images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=Path, help="the images; without it, scikit-learn's digits")
    add("--model", metavar="NAME", help=f"a GluonCV classifier (default {MODEL}, quick on a CPU, good on a GPU)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--pretrained", action="store_true", default=None, help="start from GluonCV's published weights"
    )
    weights.add_argument("--params", metavar="FILE", type=Path, help="start from the weights in this file")
    add("--lr-mult", metavar="PATH=MULT", action="append", help="train this part at MULT times --lr (repeatable)")
    add("--freeze", metavar="PATH", action="append", help="do not train this part (repeatable)")
    add("--lr", type=positive(float), help="learning rate (default: the optimizer's own, 0.01 for sgd)")
    add("--wd", type=not_negative, help="weight decay (default 0.0001)")
    add("--optimizer", metavar="NAME", help="any MXNet optimizer (default sgd; momentum is 0.9 where it has one)")
    add("--epochs", type=positive(int), help=f"default {EPOCHS}; {digits.EPOCHS} for the digits")
    add(
        "--batch-size",
        type=positive(int),
        help=f"over all devices and ranks; default {BATCH_SIZE}; {digits.BATCH_SIZE} for the digits",
    )
    add(
        "--kvstore", choices=KVSTORES, help="what sums gradients: over devices (default device), or machines, see above"
    )
    add("--ctx", metavar="CTX", help="cpu, gpu(0) or gpu(0),gpu(1) (default: gpu(0) where MXNet sees one)")
    add("--workers", type=whole, help="processes that read images (default 0: none; try 4 beside a GPU)")
    add("--seed", type=whole, default=0, help="the same seed gives the same run (default 0)")
    add("--out", metavar="DIR", type=Path, default=Path("runs/finetune"), help="default runs/finetune")
    add("--resume", action="store_true", help="go on after the last whole epoch of the run in --out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    return together(args.kvstore, lambda ranks: _run(args, ranks))


def _run(args: argparse.Namespace, ranks: Ranks) -> int:
    contexts = parse_contexts(args.ctx, ranks.local_rank)
    optimizer, settings = parse_optimizer(args.optimizer, args.lr, args.wd)
    options = {name: str(value) for name, value in sorted(vars(args).items())}
    ranks.agree("options", [item for item in options.items() if item[0] not in OF_EACH_RANK])
    options = {name: value for name, value in options.items() if name not in OF_EACH_START}
    if args.data is None:
        given = [f"--{name.replace('_', '-')}" for name in NEEDS_DATA if getattr(args, name) is not None]
        if given:
            raise UserError(
                f"{', '.join(given)} can only be used with --data DIR; without it the digits are trained on"
            )
        return digits.run(args, contexts, optimizer, settings, ranks, options)
    del options["epochs"]  # a run may go on for longer
    seed_everything(args.seed)
    model = args.model or MODEL
    images = data.open_folder(args.data, args.seed)
    ranks.agree("images", images.listing())
    net, head = network.build(model, len(images.classes))
    batch_size = _batch_size(args.batch_size or BATCH_SIZE, len(images.train), contexts, ranks)
    if ranks.first:
        artifacts.make_folder(args.out)
    network.initialize(net, contexts, model, len(images.classes))
    has_weights = bool(args.pretrained or args.params)
    if ranks.first and has_weights:
        network.load_backbone(net, head, network.download(model) if args.pretrained else args.params)
    ranks.broadcast(net.collect_params().values())
    trainer = make_trainer(net, groups(net, head, has_weights, args), optimizer, settings, ranks)
    net.hybridize(static_alloc=True)
    batches = data.loaders(images, network.input_size(model), batch_size, args.workers or 0, args.seed, ranks)
    origin = f"from {args.params or 'the published weights'} with a new {head}" if has_weights else "from scratch"
    print(f"{model} {origin}, on {', '.join(map(str, contexts))}{f' of {ranks.size} ranks' * (ranks.size > 1)}")
    print(f"{len(images.train)} images to train on, {len(images.val)} to measure on, {len(images.classes)} classes")
    print(trainer.summary(), flush=True)
    title = f"{model} on {args.data.resolve().name}, {'fine-tuned' if has_weights else 'from scratch'}"
    checkpoints = Checkpoints(args.out, options, ranks)
    return _train(net, trainer, batches, contexts, args, images.classes, title, ranks, checkpoints)


def _train(
    net: gluon.Block,
    trainer: MultiLRTrainer,
    batches: tuple[Any, Any],
    contexts: list[mx.Context],
    args: argparse.Namespace,
    classes: list[str],
    title: str,
    ranks: Ranks,
    checkpoints: Checkpoints,
) -> int:
    """Train, and keep the files in --out up to date after every epoch."""
    out: Path = args.out
    metrics = artifacts.Metrics(out / "metrics.jsonl")
    epochs = args.epochs or EPOCHS
    before = checkpoints.begin(metrics, args.resume)
    if before:
        checkpoints.restore(net, trainer, contexts, len(before))
        batches[0].skip(len(before))
    best: dict[str, Any] = max(before, key=lambda row: row["val_accuracy"], default={"val_accuracy": -1.0})
    interrupted = False
    if ranks.first:
        artifacts.save_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    with Interrupts() as interrupts:
        try:
            going_on = {"ranks": ranks, "seed": args.seed, "done": len(before)}
            for row in fit(net, trainer, *batches, contexts, epochs, interrupts, **going_on):
                if not ranks.first:
                    continue
                artifacts.save_parameters(net, out / "last.params")
                if row["val_accuracy"] > best["val_accuracy"]:
                    best = row
                    artifacts.save_parameters(net, out / "best.params")
                checkpoints.save(net, trainer, row["epoch"])
                metrics.add(row)
                checkpoints.remove_before(row["epoch"])
                print(_line(row, epochs), flush=True)
        except multiprocessing.TimeoutError as error:
            raise UserError(
                f"no worker answered within {data.TIMEOUT} s; use fewer --workers, or give them more shared memory"
            ) from error
        except KeyboardInterrupt:
            interrupted = True
            if ranks.first:
                artifacts.save_parameters(net, out / "last.params")
    if metrics.rows:
        artifacts.save_figure(figures.accuracy_and_rates(metrics.rows, title), out / "finetune.png")
        print(f"best validation accuracy {best['val_accuracy']:.1%} (epoch {best['epoch']}); files in {out}")
    if interrupted:
        print(f"multitrainer: interrupted; {out / 'last.params'} holds the weights as they are now", file=sys.stderr)
        return INTERRUPTED
    return 0


def _line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  training {row['train_accuracy']:.1%}  "
        f"validation {row['val_accuracy']:.1%}  {row['images_per_second']:.0f} images/s"
    )


def groups(net: gluon.Block, head: str, has_weights: bool, args: argparse.Namespace) -> list[ParamGroup]:
    """Turn --lr-mult and --freeze, or their absence, into groups; the whole network comes first."""
    wanted = [parse_multiplier(text) for text in args.lr_mult or []]
    wanted += [(path, 0.0) for path in args.freeze or []]
    wanted.sort(key=lambda item: item[0].count("."))  # a part after what contains it, whichever option named it
    if not wanted and has_weights:
        return [
            ParamGroup(net, lr_mult=BACKBONE_MULT, name="backbone"),
            ParamGroup(network.find(net, head), lr_mult=1, name=head),
        ]
    repeated = {path for path, _ in wanted if [other for other, _ in wanted].count(path) > 1}
    if repeated:
        raise UserError(
            f"{', '.join(sorted(repeated))}: given more than once by --lr-mult and --freeze; keep one of them"
        )
    try:
        named = [ParamGroup(network.find(net, path), lr_mult=value, name=path) for path, value in wanted]
    except ValueError as error:
        raise UserError(str(error)) from error
    return [ParamGroup(net, name="net"), *named]


def make_trainer(
    net: gluon.Block, entries: list[ParamGroup], optimizer: str, settings: dict[str, float], ranks: Ranks
) -> MultiLRTrainer:
    """Make the trainer, its complaints about the command line turned into a user's error."""
    try:
        trainer = ranks.trainer(entries, optimizer, settings)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if not any(trainer.learning_rates.values()):
        raise UserError("every part of the network is frozen; leave one to be trained")
    return trainer


def _batch_size(wanted: int, images: int, contexts: list[mx.Context], ranks: Ranks) -> int:
    """Return the size of this rank's batches, all ranks and devices together having no more than `wanted` images."""
    if wanted % ranks.size:
        raise UserError(f"--batch-size {wanted} cannot be divided among {ranks.size} ranks; choose a multiple of that")
    usable = min(wanted // ranks.size, images // ranks.size)
    if usable < len(contexts):
        raise UserError(
            f"a batch of {usable} images cannot be divided among {len(contexts)} devices; raise --batch-size"
        )
    if usable * ranks.size < wanted:
        print(f"batches of {usable * ranks.size}, not {wanted}: there are no more images to train on")
    return usable
