"""What ``multitrainer finetune`` does without ``--data``: five ways to fine-tune, compared on handwritten digits.

``datasets`` has the images and ``regimes`` the five ways, which the benchmarks use too; ``fine_tuning`` is what each of
``processes`` does, ``comparison`` the run, ``intervals`` what it shows. Training on a user's images is in ``training``.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
