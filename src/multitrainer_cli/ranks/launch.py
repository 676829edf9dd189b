"""Start the work of this process as one rank of a run, and end every rank if one of them fails."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Callable

from ..errors import UserError, report_error
from .exchange import Ranks
from .horovod_ranks import HorovodRanks
from .parameter_servers import ServerRanks


def run_distributed(kvstore: str | None, work: Callable[[Ranks], int]) -> int:
    """Do the work of this rank. If one rank fails, all end.

    Parameters
    ----------
    kvstore : str, optional
        A value of --kvstore.
    work : callable
        Takes the `Ranks` and returns the exit status. Only rank 0 shows what it prints; every rank shows its errors.

    Returns
    -------
    int
        The exit status. If there are other ranks and the status is not 0, the function does not return but ends the
        process: at a normal exit, an MXNet worker waits for all others.

    Raises
    ------
    UserError
        If the process was started as one of several and `kvstore` does not connect them.
    """
    _check_launcher(kvstore)
    if kvstore is None or not kvstore.startswith(("dist", "horovod")):
        return work(Ranks(kvstore or "device"))
    ranks = HorovodRanks() if kvstore == "horovod" else ServerRanks(kvstore)
    try:
        with open(os.devnull, "w", errors="replace") as nowhere, contextlib.redirect_stdout(
            sys.stdout if ranks.is_first else nowhere
        ):
            status = work(ranks)
    except BaseException as error:
        if ranks.size == 1:
            raise
        status = report_error(error, f"rank {ranks.rank}: ")
    if status and ranks.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(KeyboardInterrupt):
            ranks.fail()
        os._exit(status)
    ranks.finish()
    return status


def _check_launcher(kvstore: str | None) -> None:
    """Refuse to train alone in one of several processes: each would do the same and write to the same files."""
    workers = int(os.environ.get("DMLC_NUM_WORKER", "1")) if os.environ.get("DMLC_ROLE") == "worker" else 1
    for name, size, kind in (
        ("DMLC_NUM_WORKER", workers, "dist_sync"),
        ("HOROVOD_SIZE", int(os.environ.get("HOROVOD_SIZE", "1")), "horovod"),
    ):
        if size > 1 and not (kvstore or "").startswith(kind.split("_")[0]):
            raise UserError(f"{name} says that this is one of {size} processes; add --kvstore {kind} to train together")
