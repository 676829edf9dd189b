"""Multipliers outside of Gluon: `set_lr_mult` for Modules, and the attributes that exported symbols carry.

A symbol keeps multipliers as attributes of its variables, ``__lr_mult__`` and ``__wd_mult__``. Gluon writes them when
it traces a network and never reads them again. Under Module the optimizer reads them, but each call of
`Optimizer.set_lr_mult` forgets what earlier calls set. What trains in Gluon is handled elsewhere.
"""

from .attributes import restore_multipliers
from .module import set_lr_mult, set_wd_mult

__all__ = ["restore_multipliers", "set_lr_mult", "set_wd_mult"]
