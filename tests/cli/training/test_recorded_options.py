"""Two command lines that ask for the same run have the same recorded options, and others have not."""

from __future__ import annotations

import pytest

from multitrainer_cli import build_parser
from multitrainer_cli.errors import UserError
from multitrainer_cli.training.optimizer import parse_optimizer
from multitrainer_cli.training.recorded_options import recorded_options


def options(text, data="--data images"):
    args = build_parser().parse_args(["finetune", *data.split(), *text.split()])
    return recorded_options(args, parse_optimizer(args.optimizer, args.lr, args.wd))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "--lr-schedule constant --warmup 0 --optimizer SGD --lr 0.010 --wd 1e-4 --seed 0"),
        ("", "--epochs 10 --batch-size 32"),
        ("", "--accumulate 1 --label-smoothing 0 --mixup 0"),
        ("--ema 0.9 --clip-grad 1", "--ema 0.90 --clip-grad 1.0"),
        ("--model MobileNet1.0", "--model mobilenet1.0"),
        ("--optimizer AdamW", "--optimizer adamw --wd 0.01 --lr 0.001"),
        ("--lr-mult a=0.10", "--lr-mult a=.1"),
        ("--class-weights red=2.50", "--class-weights red=2.5"),
        ("--class-weights a=2 --class-weights b=3", "--class-weights b=3.0 --class-weights a=2 --class-weights c=1"),
        ("", "--class-weights blue=1"),
        ("--lr-mult a=1 --lr-mult b=2", "--lr-mult b=2.0 --lr-mult a=1"),
        ("--freeze a --freeze b.c", "--freeze b.c --freeze a"),
        ("--unfreeze-at a=02 --unfreeze-at 3", "--unfreeze-at 3 --unfreeze-at a=2"),
        ("--discriminative 0.01:1", "--discriminative 1e-2:1.0"),
        ("--layer-decay 0.8", "--layer-decay 0.80"),
        ("", "--val-split 0.20"),
        ("--model cifar_resnet20_v1", "--model cifar_resnet20_v1 --input-size 32"),
        ("--model mobilenet1.0 --input-size 224", "--model MobileNet1.0"),
    ],
)
def test_the_spelling_does_not_matter(one, other):
    assert options(one) == options(other)


@pytest.mark.parametrize(
    ("one", "other", "differing"),
    [
        ("", "--lr 0.02", {"lr"}),
        ("", "--optimizer adam", {"optimizer"}),
        ("--optimizer adam", "--optimizer adam --lr 0.01", {"lr"}),
        ("--lr 0.1", "--lr 0.10000000000000002", {"lr"}),
        ("--lr-mult a=1", "--lr-mult a=2", {"lr_mult"}),
        ("--lr-mult a=0", "--freeze a", {"lr_mult", "freeze"}),
        ("--freeze a", "--freeze A", {"freeze"}),
        ("--unfreeze-at 2", "--unfreeze-at a=2", {"unfreeze_at"}),
        ("--lr-schedule step", "--lr-schedule poly", {"lr_schedule"}),
        ("", "--warmup 0.5", {"warmup"}),
        ("", "--accumulate 2 --clip-grad 1 --ema 0.9", {"accumulate", "clip_grad", "ema"}),
        ("", "--no-augment", {"no_augment"}),
        ("", "--val-split 0.21", {"val_split"}),
        ("", "--input-size 96", {"input_size"}),
        ("", "--pretrained", {"pretrained"}),
        ("", "--class-weights balanced", {"class_weights"}),
        ("--class-weights a=1", "--class-weights a=0", {"class_weights"}),
        ("--class-weights a=2", "--class-weights A=2", {"class_weights"}),
    ],
)
def test_what_changes_the_run_does(one, other, differing):
    first, second = options(one), options(other)
    assert {name for name in first if first[name] != second[name]} == differing


def test_a_text_is_what_follows_the_name_of_its_option():
    recorded = options("--lr-mult b=1 --lr-mult a=2 --lr 0.1")
    assert (recorded["lr"], recorded["lr_mult"], recorded["freeze"]) == ("0.1", "a=2.0 --lr-mult b=1.0", "None")


def test_the_digits_have_defaults_of_their_own():
    recorded = options("", data="")
    assert (recorded["epochs"], recorded["batch_size"], recorded["lr"], recorded["model"]) == (
        *("12", "10", "None", "None"),
    )


@pytest.mark.parametrize("text", ["--lr-mult a", "--discriminative 1", "--unfreeze-at x", "--unfreeze-at 99"])
def test_a_value_that_cannot_be_parsed_is_an_error(text):
    with pytest.raises(UserError, match=text.split()[0]):
        options(text)
