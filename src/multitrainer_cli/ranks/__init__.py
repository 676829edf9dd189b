"""The processes that train together, called ranks: how they start, what they exchange, and how they end.

Training itself is in ``training``; what rank 0 writes is in ``runs``.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
