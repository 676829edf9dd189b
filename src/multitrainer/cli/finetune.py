"""``multitrainer finetune``: fine-tune one of GluonCV's classifiers, a learning rate for each part of it."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mxnet as mx
from mxnet import gluon

from .. import MultiLRTrainer
from .data import image_folder
from .demo import comparison
from .errors import INTERRUPTED, UserError
from .options import BATCH_SIZE, add_training_arguments, as_given, parse_contexts, parse_optimizer, utf8_path, whole
from .ranks.exchange import Ranks
from .ranks.launch import KVSTORES, run_distributed
from .runs import artifacts, figures, run_folder
from .runs.checkpoints import Checkpoints
from .runs.claim import claim_folder
from .runs.earlier_run import EarlierRun
from .training import features, network, param_groups, schedule
from .training.loop import Interrupts, Loader, fit, seed_everything

EPOCHS = 10
NEEDS_DATA = ("model", "pretrained", "params", *param_groups.OPTIONS, "lr_schedule", "warmup", "no_augment", "workers")
OF_EACH_RANK = (
    "data",
    "params",
    "out",
    "ctx",
    "workers",
    "feature_memory",
    "run",
)  # what need not be the same on all ranks
OF_EACH_START = (*OF_EACH_RANK, "kvstore", "resume", "overwrite")

DESCRIPTION = """\
Fine-tune an image classifier of GluonCV's on your images, with a learning rate for each part of it.

DIR holds a folder of images (.jpg, .png) for each class, or train/ and val/ with such folders. Without val/, one image
in five of every class is set aside to measure on. The network's last layer is replaced by one for your classes.

Without --data it runs on scikit-learn's digits instead: it trains on 0 to 4, then fine-tunes on ten images each of 5
to 9 in four ways, and compares them. That takes about two minutes on two cores."""

EPILOG = f"""\
PATH is an attribute path, as in Python: features, features.0, layer1, output, fc.weight. A wrong one is answered with
what there is. With --pretrained or --params, and neither --lr-mult nor --freeze, everything but the new last layer
trains at {param_groups.BACKBONE_MULT} of --lr; from scratch, everything trains at --lr. What --lr-mult and --freeze
name leaves --layer-decay and --discriminative. `multitrainer groups` shows what these options
come to, without training.

Left in --out: best.params and last.params, classes.txt (one a line, in the order of the outputs), metrics.jsonl (one
line an epoch), finetune.png and a checkpoint. Ctrl-C keeps what there is; after it, or after a crash, the same command
with --resume goes on after the last whole epoch, to the same metrics as if it had never stopped.

A run is not replaced unless you say so. Without --out, a second run goes to {run_folder.DEFAULT}-2, a third to
{run_folder.DEFAULT}-3, and --resume takes the last one. A folder that --out names is refused if it holds a run: add
--resume, or --overwrite, which removes the old run when the first epoch of the new one has ended. --resume refuses
other options, other --params, other class folders, renumbered images and a run of which a file is missing or damaged.
Images that were added since the run began are left out, so that none that it measures on is trained on; for one that
was removed, another of its class is trained on.

On several machines, --kvstore dist_sync under the DMLC_ variables of MXNet's parameter servers, or --kvstore horovod
under horovodrun: each rank trains on its share of the images, and rank 0 prints and writes. The README shows both.

examples:
  multitrainer finetune
  multitrainer finetune --data flowers --pretrained
  multitrainer finetune --data flowers --model resnet50_v1b --pretrained --freeze conv1 --lr-mult layer4=0.3
  multitrainer finetune --data flowers --pretrained --layer-decay 0.8 --no-bias-decay --lr-schedule cosine --warmup 1
  multitrainer finetune --data flowers --pretrained --discriminative 0.01:1 --unfreeze-at 2
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
    add("--data", metavar="DIR", type=utf8_path, help="the images; without it, scikit-learn's digits")
    network.add_arguments(parser)
    param_groups.add_arguments(parser)
    add_training_arguments(parser, f"default {EPOCHS}; {comparison.EPOCHS} for the digits", comparison.BATCH_SIZE)
    schedule.add_arguments(parser)
    add(
        "--no-augment",
        action="store_true",
        default=None,
        help="take the images as they are: no cropping, mirroring and colouring at random. Where the backbone is "
        "frozen, its features are then computed once, and the epochs cost what the last layer costs",
    )
    add(
        "--feature-memory",
        metavar="MB",
        type=whole,
        default=features.MEMORY,
        help=f"such features are kept in memory up to this size, and on disk beyond it (default {features.MEMORY})",
    )
    add(
        "--kvstore", choices=KVSTORES, help="what sums gradients: over devices (default device), or machines, see above"
    )
    add("--ctx", metavar="CTX", help="cpu, gpu(0) or gpu(0),gpu(1) (default: gpu(0) where MXNet sees one)")
    add("--workers", type=whole, help="processes that read images (default 0: none; try 4 beside a GPU)")
    add("--seed", type=whole, default=0, help="the same seed gives the same run (default 0)")
    add(
        "--out",
        metavar="DIR",
        type=utf8_path,
        help=f"where the files go (default {run_folder.DEFAULT}, or the next free one of {run_folder.DEFAULT}-2, ...)",
    )
    what_of_earlier = parser.add_mutually_exclusive_group()
    what_of_earlier.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last whole epoch of the run in --out (default: the last one of the default folders)",
    )
    what_of_earlier.add_argument(
        "--overwrite", action="store_true", help="replace the run in --out as soon as an epoch of the new one has ended"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    return run_distributed(args.kvstore, lambda ranks: _run(args, ranks))


def _run(args: argparse.Namespace, ranks: Ranks) -> int:
    contexts = parse_contexts(args.ctx, ranks.local_rank)
    optimizer, settings = parse_optimizer(args.optimizer, args.lr, args.wd)
    options = {name: as_given(name, value) for name, value in sorted(vars(args).items())}
    ranks.check_same("options", [item for item in options.items() if item[0] not in OF_EACH_RANK])
    options = {name: value for name, value in options.items() if name not in OF_EACH_START}
    if args.data is None:
        given = [f"--{name.replace('_', '-')}" for name in NEEDS_DATA if getattr(args, name) is not None]
        if given:
            raise UserError(
                f"{', '.join(given)} can only be used with --data DIR; without it the digits are trained on"
            )
    else:
        if not schedule.depends_on_epochs(args):
            del options["epochs"]  # a run may go on for longer
        ranks.run_on_first(lambda: _check_apart(args, args.out or run_folder.DEFAULT))
    with claim_folder(args.out, args.resume, args.overwrite, ranks) as out:
        checkpoints = Checkpoints(out, options, args.resume, args.overwrite, ranks, args.params)
        if args.data is None:
            return comparison.run(args, contexts, optimizer, settings, ranks, checkpoints)
        if args.out is None:
            ranks.run_on_first(lambda: _check_apart(args, out))  # the number of the folder is known now
        run, batches = _prepare(args, contexts, optimizer, settings, ranks, checkpoints)
        return _train(run, batches)


def _check_apart(args: argparse.Namespace, out: Path) -> None:
    """Refuse to write where the run reads from, before a folder is made there."""
    places = [out.resolve(), *out.resolve().parents]
    if any(root.resolve() in places for root in image_folder.class_roots(args.data)):
        raise UserError(
            f"--out {out} is inside --data, where its files would be taken for a class; choose another --out"
        )
    replaced = map(Path.resolve, run_folder.files_of_run(out) if args.overwrite and args.out else [])
    if args.params and args.params.resolve() in replaced:
        raise UserError(f"--params {args.params} is of the run that --overwrite would remove; choose another --out")


def _prepare(
    args: argparse.Namespace,
    contexts: list[mx.Context],
    optimizer: str,
    settings: dict[str, Any],
    ranks: Ranks,
    checkpoints: Checkpoints,
) -> tuple[_Run, tuple[Loader, Loader]]:
    """Make everything that training needs, and say what will be done; nothing is written."""
    seed_everything(args.seed)
    model = args.model or network.MODEL
    earlier = checkpoints.find_earlier(args.data, lambda rows: [run_folder.BEST, run_folder.LAST])
    images = image_folder.open_folder(args.data, args.seed, earlier.images)
    ranks.check_same("images", images.listing())
    checkpoints.announce_resume()
    for note in images.notes:
        print(note)
    net, head = network.build(model, len(images.classes))
    batch_size = _batch_size(args.batch_size or BATCH_SIZE, len(images.train), contexts, ranks)
    clock = schedule.Clock(len(images.train) // ranks.size, batch_size, args.epochs or EPOCHS)
    settings = {**settings, **schedule.settings_of(args, optimizer, clock)}
    network.initialize(net, contexts, model, len(images.classes))
    has_weights = bool(args.pretrained or args.params)
    if ranks.is_first and has_weights and not earlier.rows:  # the checkpoint holds all weights
        network.load_backbone(net, head, network.download(model) if args.pretrained else args.params)
    ranks.broadcast_parameters(net.collect_params().values())
    trainer = param_groups.make_trainer(
        param_groups.groups(net, head, has_weights, args, clock), optimizer, settings, ranks
    )
    size, augment = network.input_size(model), not args.no_augment
    batches = image_folder.loaders(images, size, batch_size, args.workers or 0, args.seed, ranks, augment)
    origin = f"from {args.params or 'the published weights'} with a new {head}" if has_weights else "from scratch"
    print(f"{model} {origin}, on {', '.join(map(str, contexts))}{f' of {ranks.size} ranks' * (ranks.size > 1)}")
    print(f"{len(images.train)} images to train on, {len(images.val)} to measure on, {len(images.classes)} classes")
    print(f"{trainer.summary()}\n{param_groups.calendar(trainer, clock)}", end="", flush=True)
    title = f"{model} on {args.data.resolve().name}, {'fine-tuned' if has_weights else 'from scratch'}"
    run = _Run(args, title, images, net, head, trainer, contexts, clock, ranks, checkpoints, earlier)
    return run, batches


class _Run(NamedTuple):
    """A network about to be trained."""

    args: argparse.Namespace
    title: str
    images: image_folder.Images
    net: gluon.HybridBlock
    head: str
    trainer: MultiLRTrainer
    contexts: list[mx.Context]
    clock: schedule.Clock
    ranks: Ranks
    checkpoints: Checkpoints
    earlier: EarlierRun

    def what_to_train(self, batches: tuple[Loader, Loader], interrupts: Interrupts) -> features.Trained:
        """Return the network and its batches; or its last layer alone, and batches of what that is given."""
        if self.args.no_augment and features.is_frozen(self.net, self.head, self.trainer):
            every = image_folder.in_order(self.images.train, self.clock.batch_size, self.args.workers or 0)
            folder = self.checkpoints.out if self.ranks.is_first else None
            job = features.Job(every, *batches, self.contexts, interrupts, folder, self.args.feature_memory)
            return features.keep(self.net, self.head, job)
        self.net.hybridize(static_alloc=True)
        return features.Trained(self.net, *batches)


def _train(run: _Run, batches: tuple[Loader, Loader]) -> int:
    """Train, and keep the files of the run up to date after every epoch."""
    net, trainer, ranks, checkpoints, before = run.net, run.trainer, run.ranks, run.checkpoints, run.earlier.rows
    out, metrics = checkpoints.out, checkpoints.metrics
    if before:
        checkpoints.restore(net, trainer, run.contexts, len(before))
        batches[0].skip(len(before))
    images = run.earlier.images or (run.images.record() if ranks.is_first else None)
    checkpoints.write_record(images)
    best: dict[str, Any] = max(before, key=lambda row: row["val_accuracy"], default={"val_accuracy": -1.0})
    interrupted = False
    with Interrupts() as interrupts:
        try:
            trained = run.what_to_train(batches, interrupts)
            if trained.note:
                print(trained.note, flush=True)
            on = (trained.train, trained.val, run.contexts, run.clock.epochs, interrupts)
            prepare_restore = {"ranks": ranks, "seed": run.args.seed, "done": len(before)}
            for row in fit(trained.block, trainer, *on, **prepare_restore):
                if not ranks.is_first:
                    continue
                checkpoints.begin_run(images)
                artifacts.save_parameters(net, out / run_folder.LAST)
                if row["val_accuracy"] > best["val_accuracy"]:
                    best = row
                    artifacts.save_parameters(net, out / run_folder.BEST)
                checkpoints.save(net, trainer, row["epoch"])
                metrics.add(row)
                checkpoints.remove_before(row["epoch"])
                print(_line(row, run.clock.epochs), flush=True)
        except multiprocessing.TimeoutError as error:
            raise UserError(
                f"no worker answered within {image_folder.TIMEOUT} s; use fewer --workers, or give them more shared "
                "memory"
            ) from error
        except KeyboardInterrupt:
            interrupted = True
    said = _keep_interrupted(run, images) if interrupted else ""
    if metrics.rows:
        artifacts.save_figure(figures.plot_training(metrics.rows, run.title), out / "finetune.png")
        print(f"best validation accuracy {best['val_accuracy']:.1%} (epoch {best['epoch']}); files in {out}")
    if interrupted:
        print(f"multitrainer: interrupted{said}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _keep_interrupted(run: _Run, images: dict[str, Any] | None) -> str:
    """Keep the weights as they are now, unless they would replace a whole run, and return what to say of it."""
    checkpoints = run.checkpoints
    if not run.ranks.is_first:
        return ""
    if checkpoints.overwrite_pending:
        return f" in the first epoch; the run in {checkpoints.out} is as it was"
    checkpoints.begin_run(images)
    artifacts.save_parameters(run.net, checkpoints.out / run_folder.LAST)
    return f"; {checkpoints.out / run_folder.LAST} holds the weights as they are now"


def _line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  training {row['train_accuracy']:.1%}  "
        f"validation {row['val_accuracy']:.1%}  {row['images_per_second']:.0f} images/s"
    )


def _batch_size(wanted: int, images: int, contexts: list[mx.Context], ranks: Ranks) -> int:
    """Return the size of this rank's batches, all ranks and devices together having no more than `wanted` images."""
    usable = min(ranks.batch_share(wanted), images // ranks.size)
    if usable < len(contexts):
        raise UserError(
            f"a batch of {usable} images cannot be divided among {len(contexts)} devices; raise --batch-size"
        )
    if usable * ranks.size < wanted:
        print(f"batches of {usable * ranks.size}, not {wanted}: there are no more images to train on")
    return usable
