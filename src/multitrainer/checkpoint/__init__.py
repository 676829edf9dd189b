"""Save and restore the state of a trainer: encoding and decoding, the archive, and atomic writing.

A file holds the optimizer, its states and the multipliers. It does not hold weights: Gluon's ``save_parameters`` saves
these. Nothing here decides when to save or where.
"""

from .accumulated import check_can_be_saved
from .restoring import load
from .saving import save
from .trainer_state import TrainerState

__all__ = ["TrainerState", "check_can_be_saved", "load", "save"]
