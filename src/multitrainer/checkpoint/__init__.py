"""Trainer states on disk: encode, archive, write atomically, compare with a trainer, restore.

Weights are not saved here: Gluon's ``save_parameters`` does that.
"""

from .trainer_state import Training, load, save

__all__ = ["Training", "load", "save"]
