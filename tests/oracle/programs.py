"""Programs for a trainer: a network, the trainer's arguments, and operations.

A program is data: a literal that can be printed, read, shortened and pasted into a test. An operation that makes no
sense at its time is skipped, so a program without some of its operations is a program, too.
"""

import dataclasses
from typing import Any, Dict, Optional, Tuple

import mxnet as mx

MODES = (
    None,
    {},
    {"static_alloc": True},
    {"static_alloc": True, "static_shape": True},
)
DOUBLE = ("sgd", "nag", "adam", "adamw", "nadam")  # the others' states are float32 whatever the weight is
# Those whose update depends on the size of the gradient, too, and with an epsilon larger than rounding errors.
OPTIMIZERS = (
    ("sgd", {"learning_rate": 0.1}),
    ("sgd", {"learning_rate": 0.03, "momentum": 0.9}),
    ("sgd", {"learning_rate": 0.03, "momentum": 0.9, "wd": 0.01}),
    ("nag", {"learning_rate": 0.03, "momentum": 0.9}),
    ("adam", {"learning_rate": 0.02, "epsilon": 0.01, "wd": 0.01}),
    ("adamw", {"learning_rate": 0.02, "epsilon": 0.01, "wd": 0.1}),
    ("adagrad", {"learning_rate": 0.05, "eps": 0.01}),
    ("rmsprop", {"learning_rate": 0.02, "epsilon": 0.01}),
    ("nadam", {"learning_rate": 0.02, "epsilon": 0.01}),
    ("lamb", {"learning_rate": 0.02, "epsilon": 0.01}),
)
STORES = ({}, {"update_on_kvstore": False}, {"update_on_kvstore": True}, {"kvstore": "local"})
SCHEDULES = {
    "frozen until": lambda n, t: 0 if t < n else 0.5,
    "frozen from": lambda n, t: 0.5 if t < n else 0,
    "frozen every": lambda n, t: 0 if t % n == 0 else 1,
    "decay": lambda n, t: 0.5 ** (t // n),
}
LR_SCHEDULERS = {
    "factor": lambda rate: mx.lr_scheduler.FactorScheduler(2, 0.7, base_lr=rate),
    "multifactor": lambda rate: mx.lr_scheduler.MultiFactorScheduler([2, 4, 7], 0.5, base_lr=rate),
    "poly": lambda rate: mx.lr_scheduler.PolyScheduler(30, base_lr=rate, pwr=1),
    "cosine": lambda rate: mx.lr_scheduler.CosineScheduler(30, base_lr=rate, warmup_steps=3),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A network, a trainer, and what happens to them."""

    stages: Tuple[Tuple[int, str], ...]
    ops: Tuple[Tuple[Any, ...], ...]
    heads: int = 1  # 0: tied to the embedding
    deferred: bool = False
    dtype: str = "float32"
    contexts: int = 1
    mode: Optional[Dict[str, Any]] = None
    optimizer: Tuple[str, Dict[str, Any]] = OPTIMIZERS[0]
    lr_scheduler: Optional[str] = None
    store: Dict[str, Any] = dataclasses.field(default_factory=dict)
    request: str = "write"
    trainers: str = "one"  # one, of the Parameters, two of the same, two of parts
    entries: Tuple[Tuple[str, Any], ...] = ()
    fast: bool = True

    def __str__(self):
        default = {field.name: field.default for field in dataclasses.fields(self)}
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "ops" and (value != default[field.name]) and value != {}:
                lines.append(f"    {field.name}={value!r},")
            elif field.name == "mode" and value == {}:
                lines.append("    mode={},")
        ops = "".join(f"        {op!r},\n" for op in self.ops)
        return "Program(\n" + "\n".join(lines) + f"\n    ops=(\n{ops}    ),\n)"


class Schedule:
    """A multiplier by the number of the update, of a kind that copies and pickles."""

    def __init__(self, name, n):
        self._name, self._n = name, n

    def __call__(self, t):
        return SCHEDULES[self._name](self._n, t)


def multiplier(value):
    """Return a multiplier as a trainer takes it; a program has the name and the number of a schedule instead."""
    return Schedule(*value) if isinstance(value, tuple) else value
