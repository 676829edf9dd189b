"""Find a learning rate: raise it from update to update, watch the loss, and put everything back.

`search` makes the updates, `result` chooses a rate from the losses, and `snapshot` remembers a trainer. It can be used
for any other experiment with a trainer.
"""

from .result import LearningRateSearch
from .search import find_learning_rate

__all__ = ["LearningRateSearch", "find_learning_rate"]
