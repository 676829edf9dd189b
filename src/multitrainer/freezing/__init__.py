"""Freeze and unfreeze: leave out updates, switch off gradients, hold BatchNorm statistics, split off a frozen prefix.

What decides that a Parameter is frozen, its multiplier, is in `multipliers`.
"""

from .api import freeze, unfreeze

__all__ = ["freeze", "unfreeze"]
