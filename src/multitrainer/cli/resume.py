"""Going on with a run that was stopped: what is kept for that, and how it is found again."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import mxnet as mx

from .. import MultiLRTrainer
from . import artifacts
from .errors import UserError
from .ranks import Ranks


class Checkpoints:
    """The weights and states of a run as they were after whole epochs, numbered by the rows of metrics until then.

    A checkpoint is written before its row of metrics and the one before it removed after that, so that whenever the
    process is killed, there is one for a row that is there.

    Parameters
    ----------
    out : Path
        The folder of the run; only rank 0 has to have it.
    options : dict of str to str
        What the run was asked for; one that goes on must be asked for the same.
    ranks : Ranks
        Those that train together.
    """

    def __init__(self, out: Path, options: dict[str, str], ranks: Ranks) -> None:
        self._folder = out / "checkpoint"
        self._options = options
        self._ranks = ranks

    def begin(self, metrics: artifacts.Metrics, resume: bool) -> list[dict[str, Any]]:
        """Return the rows of metrics that the run goes on from, none where it begins anew.

        Raises
        ------
        UserError
            Where the run to go on with was asked for something else.
        """
        rows = self._found(metrics) if resume and self._ranks.first else []
        rows = json.loads(self._ranks.give(json.dumps(rows).encode()))
        if self._ranks.first and not rows:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._folder)
            artifacts.make_folder(self._folder)
            artifacts.save_text(self._folder / "options.json", json.dumps(self._options))
        if resume:
            print(f"going on after {len(rows)} epochs" if rows else "nothing to resume; beginning anew", flush=True)
        metrics.rows = list(rows)
        return list(rows)

    def save(self, net: mx.gluon.Block, trainer: MultiLRTrainer, number: int) -> None:
        """Keep weights and states, before the row of metrics with this number is written."""
        artifacts.save_parameters(net, self._path(number, "params"))
        trainer.save_states(self._path(number, "npz"))

    def remove_before(self, number: int) -> None:
        """Remove what the row with this number has made useless."""
        for path in self._folder.iterdir():
            if path.stem.isdigit() and int(path.stem) < number:
                path.unlink()

    def restore(self, net: mx.gluon.Block, trainer: MultiLRTrainer, contexts: list[mx.Context], number: int) -> None:
        """Give all ranks the weights and states that rank 0 kept."""
        try:
            with self._ranks.local_copy(self._path(number, "params")) as path:
                net.load_parameters(str(path), ctx=contexts)
            with self._ranks.local_copy(self._path(number, "npz")) as path:
                trainer.load_states(path)
        except (ValueError, AssertionError, mx.MXNetError) as error:
            raise UserError(f"{self._folder} cannot be gone on from; run without --resume ({error})") from error

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / f"{number:06}.{kind}"

    def _found(self, metrics: artifacts.Metrics) -> list[dict[str, Any]]:
        try:
            before = json.loads((self._folder / "options.json").read_text(encoding="utf-8"))
            rows = [json.loads(line) for line in metrics.path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UserError(f"{metrics.path.parent} cannot be gone on from; run without --resume ({error})") from error
        other = [name for name in {**before, **self._options} if before.get(name) != self._options.get(name)]
        if other:
            was = ", ".join(f"--{name.replace('_', '-')} {before.get(name)}" for name in other)
            raise UserError(f"--resume: the run in {metrics.path.parent} had {was}; ask for the same, or choose --out")
        kept = {int(path.stem) for path in self._folder.glob("*.npz") if path.with_suffix(".params").exists()}
        return rows[: max((number for number in kept if number <= len(rows)), default=0)]
