"""The table of multipliers by name that an optimizer falls back to."""

from __future__ import annotations

import operator
from typing import Any, Mapping, Sequence

from mxnet.gluon import Parameter
from mxnet.optimizer import LARS, Optimizer

from .._mxnet import is_auxiliary
from ..groups import FIELDS
from ..groups.targets import check_multiplier, known_name

FILLED_ATTRIBUTE = "_multitrainer_filled"
_DECAYING = ("_weight", "_gamma")  # the endings whose weight decay Optimizer.set_wd_mult leaves alone


class NameTable:
    """The multipliers that an optimizer looks up if it has no Parameters, kept by parameter name.

    Notes
    -----
    ``Optimizer.__getstate__`` drops ``param_dict``, so an optimizer that was pickled, to parameter servers or by hand,
    goes by ``lr_mult[idx2name[index]]`` (``Optimizer._get_lrs`` in mxnet/optimizer/optimizer.py). LARS reads
    ``idx2name`` for its own purpose and would train bias, gamma and beta differently from stock Trainer once it is
    filled; its table is kept by index, where ``_get_lrs`` looks first.
    """

    def __init__(self, params: Sequence[Parameter], optimizer: Optimizer) -> None:
        self._params = params
        self._optimizer = optimizer
        self._param_dict = optimizer.param_dict
        by_index = isinstance(optimizer, LARS)
        self._keys: list[Any] = list(range(len(params))) if by_index else [param.name for param in params]
        if not by_index:
            optimizer.idx2name = dict(enumerate(self._keys))
        self.fill()

    def fill(self) -> None:
        """Write the multipliers of the Parameters to the table."""
        self._is_filled = False
        self._tables: dict[str, dict[Any, float]] = {}
        self._written: dict[str, dict[Any, float]] = {}
        for field in FIELDS:
            table = dict(zip(self._keys, map(operator.attrgetter(field), self._params)))
            setattr(self._optimizer, field, table)
            self._tables[field], self._written[field] = table, table.copy()
        # Pickled with the optimizer: what was filled in here was not asked for by the user.
        setattr(self._optimizer, FILLED_ATTRIBUTE, self._written)
        self._is_filled = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        # An Optimizer loses its Parameters when it is copied or pickled (``Optimizer.__getstate__``), and with them
        # every multiplier that is set later.
        self._optimizer.param_dict = self._param_dict

    def read(self) -> dict[str, dict[Parameter, float]]:
        """Read what somebody else wrote to the table since, field by field, as `Optimizer.set_lr_mult` does.

        `Optimizer.set_lr_mult` replaces the table; then every entry of the new table counts as written.

        Raises
        ------
        TypeError, ValueError
            If an entry names an unknown Parameter, is not a multiplier, or cannot be told from the zeros that MXNet
            adds. The table is then filled from the Parameters again.
        RuntimeError
            If the optimizer was given to another Trainer.
        """
        if self._optimizer.param_dict is not self._param_dict:
            raise RuntimeError(
                "the Optimizer object of this trainer was given to another Trainer since, which looks up its own "
                "Parameters' multipliers; give every Trainer an Optimizer of its own"
            )
        if not self._is_filled:  # it was interrupted
            self.fill()
        found = {}
        try:
            for field in FIELDS:
                table, written = getattr(self._optimizer, field), self._written[field]
                # `set_wd_mult` adds entries that it was not given, so only `set_lr_mult` can be recognized this way.
                replaced = field == "lr_mult" and table is not self._tables[field]
                if replaced or table != written:
                    new = {key: value for key, value in table.items() if replaced or written.get(key) != value}
                    _check_no_default_wd_mult(new if field == "wd_mult" else {})
                    found[field] = parse_multipliers(new, self._params, f"optimizer.set_{field}")
        except (TypeError, ValueError):
            self.fill()
            raise
        return found


def parse_multipliers(table: Mapping[Any, Any], params: Sequence[Parameter], where: str) -> dict[Parameter, float]:
    """Read an optimizer's table, whose keys are names or indices, as multipliers of ``params``.

    Raises
    ------
    TypeError, ValueError
        If a key names an unknown Parameter or a statistic, or a value is not a number >= 0.
    """
    by_name = {param.name: param for param in params}
    found = {}
    for key, value in table.items():
        if isinstance(key, int) and 0 <= key < len(params):
            param = params[key]
        else:
            param = by_name[known_name(key, by_name, where)]
        if is_auxiliary(param):
            raise ValueError(f"{where}: {key!r} is a statistic or a constant, which no multiplier moves")
        multiplier = check_multiplier(value, f"{where}: {key!r}")
        if callable(multiplier):
            raise TypeError(f"{where}: {key!r} must be a number; a schedule goes to the trainer's own set_lr_mult")
        found[param] = multiplier
    return found


def explicit_multipliers(optimizer: Optimizer, field: str) -> dict[Any, Any]:
    """Collect the multipliers that the user told a ready-made Optimizer, by name or by index.

    Left out is what a trainer filled in, and the 0 that MXNet gives to the weight decay of biases and the like.
    """
    filled = getattr(optimizer, FILLED_ATTRIBUTE, {}).get(field, {})
    defaults = set(optimizer.idx2name.values()) if field == "wd_mult" else ()
    return {
        key: value
        for key, value in getattr(optimizer, field).items()
        if filled.get(key) != value and not (value == 0 and key in defaults and not key.endswith(_DECAYING))
    }


def _check_no_default_wd_mult(table: Mapping[Any, Any]) -> None:
    # Optimizer.set_wd_mult adds 0 for every name without these endings, which looks like an entry that was named.
    added = [name for name, value in table.items() if value == 0 and not str(name).endswith(_DECAYING)]
    if added:
        raise ValueError(
            f"optimizer.set_wd_mult would take the weight decay of {added[0]!r} too, whether it was named or not: "
            "MXNet adds 0 for all that is neither weight nor gamma. Use trainer.set_wd_mult"
        )
