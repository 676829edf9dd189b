"""The table of groups before training: the learning rates that the options ask for, and when they are reached."""

from __future__ import annotations

from multitrainer import MultiLRTrainer, unfreeze_at
from multitrainer.report import format_table

from .schedule import TrainingLength

MAX_LISTED = 4  # groups that a line has room for


def describe_groups(trainer: MultiLRTrainer, length: TrainingLength, warmup: float) -> str:
    """Return the table of groups, and a line for each update that ends the warm-up or unfreezes groups.

    Parameters
    ----------
    trainer : MultiLRTrainer
        Before its first update.
    length : TrainingLength
        How long the run is.
    warmup : float
        Epochs of warm-up. The table has the learning rates at its end: those of the first update are close to 0.
    """
    rate = trainer.optimizer.lr  # whatever a scheduler makes of it
    rows = [row._replace(learning_rate=rate * row.lr_mult) for row in trainer._rows()]
    return f"{format_table(rows)}\n{describe_changes(trainer, length, warmup)}"


def describe_changes(trainer: MultiLRTrainer, length: TrainingLength, warmup: float = 0) -> str:
    """Return a line for the update that ends the warm-up, and for each update that unfreezes groups."""
    unfrozen: dict[int, list[str]] = {}
    for group in trainer.groups:
        if isinstance(group.lr_mult, unfreeze_at):
            unfrozen.setdefault(group.lr_mult.num_update, []).append(f"{group.name} ({group.lr_mult.lr_mult:.4g})")
    changes = []
    for update, names in unfrozen.items():
        shown = ", ".join(names) if len(names) <= MAX_LISTED else f"{names[0]} to {names[-1]}, {len(names)} groups"
        changes.append((update, f"unfreezes {shown}"))
    if length.updates_in(warmup) > 1:
        changes.append((length.updates_in(warmup), "ends the warm-up: the learning rates are those above"))
    lines = [f"epoch {length.epoch_of(update)}, update {update}, {change}\n" for update, change in sorted(changes)]
    return "".join(lines)
