"""Parameter groups: what a target and a multiplier can be, and which Parameter gets which multiplier.

`resolve` reads what the user wrote and changes nothing; setting the multipliers is the trainer's work.
"""

from .param_group import FIELDS, ParamGroup
from .resolve import Plan, resolve, resolve_within

__all__ = ["FIELDS", "ParamGroup", "Plan", "resolve", "resolve_within"]
