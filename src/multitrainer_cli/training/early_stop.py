"""When --early-stop ends a run: decided by its rows of metrics alone, so that a resumed run ends at the same epoch."""

from __future__ import annotations

from typing import Any, Sequence


def explain_stop(rows: Sequence[dict[str, Any]], patience: int | None) -> str:
    """Say why a run with these rows of metrics ends; empty if it goes on.

    Parameters
    ----------
    rows : sequence of dict
        Its metrics, a row for each epoch.
    patience : int, optional
        The epochs without a new best validation accuracy after which it ends; None for no end.

    Examples
    --------
    >>> rows = [{"epoch": epoch, "val_accuracy": value} for epoch, value in enumerate([0.5, 0.75, 0.75, 0.5], 1)]
    >>> explain_stop(rows, patience=2)  # doctest: +ELLIPSIS
    'stopped after epoch 4: the validation accuracy has not risen since epoch 2. To train on, ...'
    >>> explain_stop(rows, patience=3)
    ''
    """
    if patience is None or not rows:
        return ""
    best, last = max(rows, key=lambda row: row["val_accuracy"])["epoch"], rows[-1]["epoch"]
    if last - best < patience:
        return ""
    return (
        f"stopped after epoch {last}: the validation accuracy has not risen since epoch {best}. To train on, --resume "
        f"with a larger --early-stop than {patience}, or without it"
    )
