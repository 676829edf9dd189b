"""Training: the network, its parameter groups and learning rates, cached features, the loop over epochs.

The batches come from `data`; the folder of a run and its checkpoints are in `runs`.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
