"""Parameter groups: what a user may write as a target, a multiplier or a group, and which Parameter gets which.

`resolve` reads Parameters and changes none. The trainer sets the multipliers, and `recipes` makes groups of a network.
"""

from .param_group import FIELDS, ParamGroup
from .resolve import ResolvedGroup, ResolvedGroups, resolve, resolve_assignment

__all__ = ["FIELDS", "ParamGroup", "ResolvedGroup", "ResolvedGroups", "resolve", "resolve_assignment"]
