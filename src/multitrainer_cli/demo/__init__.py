"""What ``multitrainer finetune`` does without ``--data``: four ways to transfer, compared on handwritten digits.

``digits`` is the data, ``regimes`` are the four ways, which the benchmarks use too, and ``comparison`` is the run.
Training on a user's images is in ``training``.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
