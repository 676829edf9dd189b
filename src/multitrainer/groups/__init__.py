"""Parameter groups: targets, multipliers and groups as a user writes them, and which multiplier a Parameter gets.

`resolve` only reads Parameters. The trainer sets the multipliers, and `recipes` makes groups of a network.
"""

from .param_group import FIELDS, OptimizerChoice, ParamGroup
from .resolve import OPTIMIZER, ResolvedGroup, ResolvedGroups, resolve, resolve_addition, resolve_assignment

__all__ = [
    "FIELDS",
    "OPTIMIZER",
    "OptimizerChoice",
    "ParamGroup",
    "ResolvedGroup",
    "ResolvedGroups",
    "resolve",
    "resolve_addition",
    "resolve_assignment",
]
