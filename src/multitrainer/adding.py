"""Check Parameters that are to be added to a trainer, and undo an addition that fails."""

from __future__ import annotations

import contextlib
from typing import Any, Iterable, Iterator, Sequence

from mxnet.context import Context
from mxnet.gluon import Parameter, Trainer

from . import _mxnet


def check_addition(trainer: Trainer, params: Sequence[Parameter], contexts: Sequence[Context]) -> None:
    """Raise an error if ``params`` cannot join those of ``trainer``, which are on ``contexts``.

    Raises
    ------
    ValueError
        If a Parameter is not initialized, or is on other contexts.
    RuntimeError
        If parameter servers update and have the optimizer already, or if the kvstore that was set up for dense
        Parameters cannot take a sparse one.
    """
    if _mxnet.has_sent_optimizer(trainer):
        raise RuntimeError(
            f"{params[0].name!r} cannot be added any more: parameter servers update, and got the optimizer with the "
            "first step. Add it before that; or let the workers update: a synchronous kvstore such as 'dist_sync', "
            "dense weights and gradients, update_on_kvstore=False"
        )
    for param in params:
        _check_contexts(param, list(contexts))
        if not _mxnet.kvstore_fits(trainer, param):
            raise RuntimeError(
                f"Parameter {param.name!r} is sparse, and the kvstore was set up for dense ones, with the first step. "
                "Add it before that, or build a new trainer"
            )


def _check_contexts(param: Parameter, contexts: list[Context]) -> None:
    try:
        found = param.list_ctx()
    except RuntimeError as error:
        raise ValueError(
            f"Parameter {param.name!r} is not initialized: call layer.initialize(ctx={contexts}) before it is added"
        ) from error
    if found != contexts:
        raise ValueError(
            f"Parameter {param.name!r} is on {found}, and those of this trainer are on {contexts}: move it with "
            f"layer.collect_params().reset_ctx({contexts})"
        )


@contextlib.contextmanager
def undone_on_error(objects: Iterable[Any]) -> Iterator[None]:
    """Put back the attributes that ``objects`` had if what is done here fails or is interrupted."""
    before = [(each, dict(vars(each))) for each in objects]
    try:
        yield
    except BaseException:
        for each, attributes in before:
            vars(each).clear()
            vars(each).update(attributes)
        raise
