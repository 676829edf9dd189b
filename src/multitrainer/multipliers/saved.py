"""What a file of trainer states says about the multiplier of a Parameter."""

from __future__ import annotations

from typing import Container, Mapping, NamedTuple, Sequence

from mxnet.gluon import Parameter

from .tracker import Numbers

ACTS, ENDED = "acts", "ended"  # what is saved of a schedule: it is in force, or it was ended by another multiplier


class SavedMultipliers(NamedTuple):
    """The multipliers of one Parameter, and what it gets back when it is unfrozen."""

    lr_mult: float
    wd_mult: float
    grad_req: str  # of a frozen Parameter, the one from before
    before: float  # lr_mult; of a frozen Parameter, the one from before
    schedules: Mapping[str, str]  # field -> ACTS or ENDED, for the fields that have or had a schedule


class PreparedRestore(NamedTuple):
    """Saved multipliers that were checked against a trainer, for `Multipliers.restore`."""

    saved: Mapping[Parameter, SavedMultipliers]
    numbers: Mapping[str, Numbers]
    ended: Mapping[str, Container[Parameter]]
    num_update: int
    was_frozen: bool
    fields: Sequence[str]
