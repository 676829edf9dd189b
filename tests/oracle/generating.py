"""Generate random programs."""

import random

import networks
from programs import DOUBLE, LR_SCHEDULERS, MODES, OPTIMIZERS, SCHEDULES, STORES, Program

WEIGHTS = {
    "train": 10,
    "train_twice": 5,
    "set": 6,
    "set_and_train": 12,
    "toggle": 3,
    "in_turn": 1,
    "functions": 3,
    "late": 5,
    "predict": 3,
    "allreduce": 2,
    "accumulate": 2,
    "zero_grad": 1,
    "hyper": 2,
    "decay": 1,
    "request": 1,
    "set_data": 1,
    "parameters": 1,
    "states": 2,
    "save_and_return": 1,
    "resume": 1,
    "copy": 1,
    "hybridize": 1,
    "cast": 1,
    "attach": 1,
    "error": 1,
    "interrupt": 1,
}


def generate(seed):
    """Return the program of a seed."""
    rng = random.Random(seed)
    kinds = sorted(networks.STAGES)
    count = rng.choice((1, 1, 2, 2, 3, 3, 4, 6))
    stages = tuple(enumerate(rng.choice(kinds) for _ in range(count)))
    heads = rng.choice((0, 1, 1, 1, 2))
    trainers = rng.choice(("one",) * 6 + ("of the Parameters", "two of the same", "two of parts"))
    if trainers == "two of parts" and heads == 0:
        trainers = "one"
    if trainers in ("of the Parameters", "two of parts") and any("batchnorm" in kind for _, kind in stages):
        trainers = "one"  # only a trainer that knows the Blocks can freeze their statistics
    contexts = rng.choice((1, 1, 1, 2))
    name, params = rng.choice(OPTIMIZERS)
    if name == "nadam":
        contexts = 1  # it counts the updates of all contexts in one, under stock
    dtype = rng.choice(("float32", "float32", "float64")) if name in DOUBLE else "float32"
    scheduler, request, fast = rng.choice((None, None, *LR_SCHEDULERS)), rng.choice(("write",) * 3 + ("add",)), True
    weights = WEIGHTS
    if rng.random() < 0.1:  # steps that fail, with settings that let them change weights only
        (name, params), scheduler, request, contexts, trainers = OPTIMIZERS[0], None, "write", 1, "one"
        stages = stages + tuple((len(stages) + i, rng.choice(kinds)) for i in range(4))
        weights = {**WEIGHTS, "interrupt": 15}
    else:
        fast = rng.random() < 0.7
    writer = _Writer(rng, networks.names(stages, heads), trainers, weights)
    entries = () if trainers == "two of parts" else tuple(writer.entry() for _ in range(rng.choice((0, 0, 1, 2))))
    return Program(
        stages=stages,
        heads=heads,
        deferred=rng.random() < 0.3,
        dtype=dtype,
        contexts=contexts,
        mode=rng.choice(MODES),
        optimizer=(name, params),
        lr_scheduler=scheduler,
        store=rng.choice(STORES) if contexts == 2 else {},
        request=request,
        trainers=trainers,
        entries=entries,
        fast=fast,
        ops=tuple(op for _ in range(rng.randint(4, 16)) for op in writer.ops()),
    )


class _Writer:
    """Writes operations, most of them for the same few targets, so that layers are frozen often."""

    def __init__(self, rng, names, trainers, weights):
        self._rng, self._names, self._trainers = rng, names, trainers
        self._favourites = rng.sample(names, min(len(names), rng.randint(1, 3)))
        self._last = {}
        self._kinds, self._weights = zip(*weights.items())

    def entry(self):
        return self._target(), self._value(schedules=True)

    def ops(self):
        kind = self._rng.choices(self._kinds, self._weights)[0]
        return getattr(self, f"_{kind}")()

    def _target(self):
        return self._rng.choice(self._favourites if self._rng.random() < 0.8 else self._names)

    def _value(self, schedules=False):
        if schedules and self._trainers in ("one", "of the Parameters") and self._rng.random() < 0.2:
            return self._rng.choice(sorted(SCHEDULES)), self._rng.randint(2, 6)
        return self._rng.choice((0, 0, 0, 0.5, 1, 2))

    def _k(self):
        return self._rng.choice((0, 1)) if self._trainers.startswith("two") else 0

    def _seed(self):
        return self._rng.randrange(1000)

    def _train(self):
        reset = [("zero_grad",)] if self._rng.random() < 0.8 else []  # where gradients are added up, it matters
        return [("backward", self._seed(), self._rng.random() < 0.2), ("step", self._k()), *reset]

    def _train_twice(self):
        return self._train() + self._train()

    def _set(self):
        targets = tuple({self._target() for _ in range(self._rng.choice((1, 1, 1, 2)))})
        targets = tuple(sorted(targets))
        door = self._rng.choice(("trainer", "trainer", "trainer", "names", "attribute", "setattr", "optimizer"))
        value = self._value(schedules=door in ("trainer", "names"))
        if not isinstance(value, tuple):  # freeze and unfreeze in turn
            value = 0 if self._last.get(targets, 1) and self._rng.random() < 0.8 else value or 1
            self._last[targets] = value
        return [("set", self._k(), door, targets, value)]

    def _functions(self):
        return [(self._rng.choice(("freeze", "unfreeze")), self._target())]

    def _set_and_train(self):
        return self._set() + self._train()

    def _toggle(self):
        """Freeze and unfreeze, with steps between, a few times."""
        target, ops = self._target(), []
        door = self._rng.choice(("trainer", "attribute"))
        for _ in range(self._rng.randint(1, 3)):
            for value in (0, 1):
                ops += [("set", self._k(), door, (target,), value), *self._train()]
        return ops

    def _late(self):
        """Do something between backward and step."""
        backward, step, *reset = self._train()
        what = self._rng.choice((self._set, self._set, self._predict, self._functions, self._states))
        return [backward, *what(), step, *reset]

    def _predict(self):
        return [("predict", self._seed())]

    def _allreduce(self):
        return [("backward", self._seed(), False), ("allreduce", self._k())]

    def _accumulate(self):
        return [("backward", self._seed(), False), *self._train(), ("zero_grad",)]

    def _zero_grad(self):
        return [("zero_grad",)]

    def _hyper(self):
        name = self._rng.choice(("learning_rate", "wd", "momentum"))
        return [("hyper", self._k(), name, self._rng.choice((0.02, 0.05) if name == "learning_rate" else (0.1, 0.5)))]

    def _decay(self):
        return [("decay", self._k(), self._target(), self._rng.choice((0, 0.5, 2)))]

    def _request(self):
        return [("grad_req", self._target(), self._rng.choice(("write", "add")))]

    def _set_data(self):
        return [("set_data", self._target(), self._seed())]

    def _parameters(self):
        return [(self._rng.choice(("save_parameters", "load_parameters")),)]

    def _states(self):
        return [(self._rng.choice(("save_states", "load_states")), self._k())]

    def _save_and_return(self):
        k = self._k()
        return [("save_states", k), *self._set_and_train(), *self._set_and_train(), ("load_states", k)]

    def _resume(self):
        return [("resume", self._k())]

    def _copy(self):
        return [("copy", self._rng.choice(("deepcopy", "pickle")), self._seed())]

    def _hybridize(self):
        return [("hybridize", self._rng.choice(MODES))]

    def _cast(self):
        return [("cast", self._rng.choice(("float32", "float64")))]

    def _attach(self):
        target = self._target()
        return [("set", self._k(), "trainer", (target,), 0), ("attach", target), *self._train()]

    def _error(self):
        return [("error", self._rng.choice(("shape", "layer")), self._seed())]

    def _interrupt(self):
        """Let a step fail, often the first one after a layer was frozen or unfrozen."""
        if self._rng.random() < 0.5:
            failure = ("engine error", self._k(), self._seed())
        else:
            failure = ("interrupt", self._k(), self._seed(), self._rng.randint(1, 400))
        before = self._set() if self._rng.random() < 0.7 else []
        return [*self._train(), *before, failure, *self._train_twice()]

    def _in_turn(self):
        """Freeze two targets in turn, each while the other one learns; then let both learn."""
        one, other = self._target(), self._target()
        door = self._rng.choice(("functions", "trainer", "attribute"))

        def say(target, value):
            if door == "functions":
                return ("unfreeze" if value else "freeze", target)
            return ("set", self._k(), door, (target,), value)

        ops = []
        for i in range(self._rng.randint(2, 5)):
            frozen, free = (one, other) if i % 2 else (other, one)
            ops += [say(free, 1), say(frozen, 0), *self._train()]
        return [*ops, say(one, 1), say(other, 1), *self._train_twice()]
