"""What ``multitrainer finetune`` does without ``--data``: four ways to transfer, compared on handwritten digits.

``digits`` is the data, ``regimes`` are the four ways, which the benchmarks use too, and ``comparison`` is the run.
Training on a user's images is in ``training``.
"""
