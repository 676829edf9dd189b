"""The parts of a trainer that are saved and restored, and how indices of Parameters are recognized in an optimizer."""

from __future__ import annotations

import math
from typing import Any, Mapping, NamedTuple, Sequence

from mxnet.context import Context
from mxnet.gluon import Parameter
from mxnet.optimizer import Updater

from .. import _mxnet
from ..gradients.accumulation import Accumulation
from ..multipliers.multipliers import Multipliers
from ..optimizers.partition import Part, Partition

# Attributes of an optimizer that are not saved with the others.
NOT_SAVED = _mxnet.NOT_STATE | {"_multitrainer_filled"}


class TrainerState(NamedTuple):
    """The parts of a trainer that a file of states holds, or is loaded into."""

    params: Sequence[Parameter]
    partition: Partition  # the optimizers
    updaters: Sequence[Updater]  # one for each context, or that of a kvstore that updates
    update_on_kvstore: bool
    contexts: Sequence[Context]
    multipliers: Multipliers
    groups: Sequence[str]
    loss_scaler: Any  # AMP's, or None
    accumulation: Accumulation
    num_ranks: int  # processes that hold equal states, and gradients of their own

    def updated_indices(self, part: Part) -> tuple[set[int], set[int]]:
        """Return the indices of the Parameters that a part's optimizer updated, and of those that have a state."""
        with_state = set(self.updaters[0].states).intersection(self.partition.indices(part))
        return set(_mxnet.update_counts(part.optimizer)), with_state


def has_index_keys(value: Any, count: int) -> bool:
    """Whether `value` is a dict whose keys could all be indices of `count` Parameters."""
    return isinstance(value, dict) and all(type(i) is int and 0 <= i < count for i in value)


def check_loss_scale(attributes: Mapping[str, Any]) -> None:
    """Raise a ValueError if a number among the attributes of AMP's loss scaler is negative or not finite."""
    for name, value in attributes.items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise ValueError(f"{name} of AMP's loss scaler is {value}")
