"""The parser of the command line, without the options of the subcommands."""

from __future__ import annotations

import argparse
import difflib
from importlib import metadata
from typing import Any, NoReturn, Sequence

from ..errors import UserError

# What timm and GluonCV's training scripts call an option.
NAMES_ELSEWHERE = {
    "--data-dir": "--data",
    "--device": "--ctx",
    "--early-stopping": "--early-stop",
    "--gpu": "--ctx",
    "--gpus": "--ctx",
    "--grad-accum-steps": "--accumulate",
    "--img-size": "--input-size",
    "--lr-mode": "--lr-schedule",
    "--mixup-alpha": "--mixup",
    "--model-ema": "--ema",
    "--model-ema-decay": "--ema",
    "--num-epochs": "--epochs",
    "--num-gpus": "--ctx",
    "--num-workers": "--workers",
    "--opt": "--optimizer",
    "--output": "--out",
    "--patience": "--early-stop",
    "--save-dir": "--out",
    "--sched": "--lr-schedule",
    "--smoothing": "--label-smoothing",
    "--use-pretrained": "--pretrained",
    "--warmup-epochs": "--warmup",
    "--weight-decay": "--wd",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors, and that does not guess options from their beginnings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # or --over would replace a run

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what is known, and refuse the rest: the parser of the subcommand knows best what was meant."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._suggest(unknown)}")
        return parsed, unknown

    def _suggest(self, unknown: Sequence[str]) -> str:
        """Return the options that were perhaps meant."""
        given = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        names = [name for name in self._option_string_actions if name.startswith("--")]
        found: list[str] = []
        for name in given:
            known = NAMES_ELSEWHERE.get(name)
            found += [known] if known in names else difflib.get_close_matches(name.replace("_", "-"), names, 1)
        if not given and "--data" in names:
            found = [f"--data {unknown[0]}"]
        return f"; did you mean {', '.join(dict.fromkeys(found))}?" if found else ""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        raise UserError(f"{message} (see {self.prog} --help)")


class PrintVersions(argparse.Action):
    """Prints the versions of the packages that decide what the command does, without importing them."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print them, and exit."""
        print("\n".join(map(_describe_version, ("multitrainer", "mxnet", "gluoncv", "numpy"))))
        parser.exit()


def _describe_version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} is not installed"
