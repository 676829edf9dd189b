"""Random programmes for a trainer, run on a network and on its reference side by side.

A programme is data: a literal that can be printed, read, shortened and pasted into a test. Every operation makes sense
at any time, or is passed over, so that what is left of a programme when operations are taken out is one, too.
"""

import copy
import dataclasses
import os
import pickle
import random
import sys
import tempfile
import warnings
from typing import Any, Dict, Optional, Tuple

import mxnet as mx
import networks
import numpy as np
from mxnet import autograd, gluon
from networks import WIDTH
from reference import Reference

import multitrainer
from multitrainer import MultiLRTrainer

MODES = (
    None,
    {},
    {"static_alloc": True},
    {"static_alloc": True, "static_shape": True},
)
DOUBLE = ("sgd", "nag", "adam", "nadam")  # the others' states are float32 whatever the weight is
# Rules that are no function of the gradient's direction alone, with an epsilon that rounding does not reach.
OPTIMIZERS = (
    ("sgd", {"learning_rate": 0.1}),
    ("sgd", {"learning_rate": 0.03, "momentum": 0.9}),
    ("sgd", {"learning_rate": 0.03, "momentum": 0.9, "wd": 0.01}),
    ("nag", {"learning_rate": 0.03, "momentum": 0.9}),
    ("adam", {"learning_rate": 0.02, "epsilon": 0.01, "wd": 0.01}),
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
TOLERANCE = {"float32": (2e-5, 1e-6), "float64": (1e-10, 1e-12)}  # of the largest value of an array, and at least

LARGE = 100


class Difference(Exception):  # noqa: N818  it is what is looked for
    """What the trainer does, and what the reference does, are two things."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Impossible(Exception):  # noqa: N818
    """Stock MXNet cannot do this either."""


@dataclasses.dataclass(frozen=True)
class Programme:
    """A network, a trainer, and what is done with them."""

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
        return "Programme(\n" + "\n".join(lines) + f"\n    ops=(\n{ops}    ),\n)"


# -- writing programmes -----------------------------------------------------------------------------------------------


def generate(seed):
    """Return the programme of a seed."""
    rng = random.Random(seed)
    kinds = sorted(networks.STAGES)
    count = rng.choice((1, 1, 2, 2, 3, 3, 4, 6))
    stages = tuple(enumerate(rng.choice(kinds) for _ in range(count)))
    heads = rng.choice((0, 1, 1, 1, 2))
    trainers = rng.choice(("one",) * 6 + ("of the Parameters", "two of the same", "two of parts"))
    if trainers == "two of parts" and heads == 0:
        trainers = "one"
    if trainers in ("of the Parameters", "two of parts") and any("batchnorm" in kind for _, kind in stages):
        trainers = "one"  # only who knows the Blocks can hold their statistics
    contexts = rng.choice((1, 1, 1, 2))
    name, params = rng.choice(OPTIMIZERS)
    if name == "nadam":
        contexts = 1  # it counts the updates of all contexts in one, under stock
    dtype = rng.choice(("float32", "float32", "float64")) if name in DOUBLE else "float32"
    scheduler, request, fast = rng.choice((None, None, *LR_SCHEDULERS)), rng.choice(("write",) * 3 + ("add",)), True
    weights = WEIGHTS
    if rng.random() < 0.1:  # steps that fail, where they leave nothing behind but weights
        (name, params), scheduler, request, contexts, trainers = OPTIMIZERS[0], None, "write", 1, "one"
        stages = stages + tuple((len(stages) + i, rng.choice(kinds)) for i in range(4))
        weights = {**WEIGHTS, "interrupt": 15}
    else:
        fast = rng.random() < 0.7
    writer = _Writer(rng, networks.names(stages, heads), trainers, weights)
    entries = () if trainers == "two of parts" else tuple(writer.entry() for _ in range(rng.choice((0, 0, 1, 2))))
    return Programme(
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
    """Writes operations; a few targets, which it comes back to, make for layers that are frozen often."""

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
        """Let a step fail, often the first after something was frozen or unfrozen."""
        if self._rng.random() < 0.5:
            failure = ("engine error", self._k(), self._seed())
        else:
            failure = ("interrupt", self._k(), self._seed(), self._rng.randint(1, 400))
        before = self._set() if self._rng.random() < 0.7 else []
        return [*self._train(), *before, failure, *self._train_twice()]

    def _in_turn(self):
        """Freeze one target after the other, each while the one before learns again; then let both learn."""
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


# -- running them -----------------------------------------------------------------------------------------------------


def difference(programme, subject=MultiLRTrainer):
    """Run a programme; return the `Difference` that it comes to, or None."""
    os.environ["MULTITRAINER_FAST"] = "1" if programme.fast else "0"
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        place = "at the beginning"
        try:
            run = Run(programme, folder, subject)
            for i, op in enumerate(programme.ops):
                place = f"operation {i}, {op!r}"
                run.do(op)
        except Impossible:
            pass
        except Difference as found:
            found.args = (f"{place}: {found}",)
            return found
    return None


class Run:
    """A network with its trainers, and the twin with its reference, in the middle of a programme."""

    def __init__(self, programme, folder, subject):
        self._programme, self._folder, self._subject = programme, folder, subject
        self._contexts = [mx.cpu(i) for i in range(programme.contexts)]
        self._dtype, self._mode = "float32", programme.mode
        self._net, twin = self._network(), self._network()
        self._params, self._blocks = networks.trainable(self._net), networks.blocks(self._net)
        self._pairs = list(zip(*(net.collect_params().values() for net in (self._net, twin))))
        self._statistics = networks.batchnorms(twin)
        self._members = {name: list(networks.trainable(block)) for name, block in networks.blocks(twin).items()}
        self._members.update((name, [name]) for name in self._params)
        self._random = any(kind in networks.RANDOM for _, kind in programme.stages)
        self._reference = Reference(twin)
        self._called = False
        self._clocked = True  # whether updates are counted as in the reference
        self._attached = {}
        self._saved = {}
        if programme.dtype != "float32":
            self._dtype = programme.dtype
            self._net.cast(self._dtype)
            twin.cast(self._dtype)
        self._hybridize(programme.mode)
        if programme.request != "write":
            for param in self._params.values():
                param.grad_req = programme.request
            self._reference.ask_for(self._reference.params, programme.request)
        self._new_trainers(programme.entries)
        self._held = {}

    def do(self, op):
        """Make one operation, if it can be made now, and compare."""
        getattr(self, "_" + op[0].replace(" ", "_"))(*op[1:])
        self._compare()

    # -- setting up ---------------------------------------------------------------------------------------------------

    def _network(self):
        programme = self._programme
        return networks.build(programme.stages, programme.heads, programme.deferred, self._contexts)

    def _optimizer(self):
        name, params = self._programme.optimizer
        kind = self._programme.lr_scheduler
        if kind is not None:
            params = {**params, "lr_scheduler": LR_SCHEDULERS[kind](params["learning_rate"])}
        return name, dict(params)

    def _new_trainers(self, entries=()):
        net, how = self._net, self._programme.trainers
        parts = {
            "one": [net],
            "of the Parameters": [net.collect_params()],
            "two of the same": [net, net],
            "two of parts": [net.body, net.heads],
        }[how]
        entries, given = self._disjoint(entries), []
        for target, _ in entries:
            given.append(self._target(target))
            if how == "of the Parameters" and isinstance(given[-1], gluon.Block):
                given[-1] = given[-1].collect_params()
        first = [(target, _multiplier(value)) for target, (_, value) in zip(given, entries)]

        def stock():
            twin = self._reference.net
            blocks = {"two of parts": [twin.body, twin.heads]}.get(how, [twin] * len(parts))
            self._reference.new_trainers(blocks, self._optimizer, self._programme.store)

        def ours():
            groups = [[part, *(() if i else first)] for i, part in enumerate(parts)]
            return [self._subject(group, *self._optimizer(), **self._programme.store) for group in groups]

        self._trainers, _ = self._both(ours, stock)
        for target, value in entries:
            self._reference.set(0, self._names(target), _multiplier(value))

    def _disjoint(self, entries):
        """Leave out entries that overlap one before."""
        taken, kept = set(), []
        for target, value in entries:
            names = self._names(target)
            if names and not taken & set(names) and len(names) < len(self._params):
                taken.update(names)
                kept.append((target, value))
        return kept

    def _names(self, target):
        """Return the names of the Parameters of a target; none if it is not part of this network."""
        return self._members.get(target, [])

    def _both(self, mine, theirs):
        """Do something on both sides; raise where one side fails alone, or where both do and nothing can follow."""
        results, errors = [], []
        for action in (mine, theirs):
            try:
                results.append(action())
            except Exception as error:
                errors.append((action, error))
        if len(errors) == 2:
            raise Impossible from errors[0][1]
        for action, error in errors:
            who = "raises" if action is mine else "does not raise"
            raise Difference(f"{who} {type(error).__name__}", f"{who} {error!r}") from error
        return results

    # -- passes -------------------------------------------------------------------------------------------------------

    def _batch(self, seed, variable=False):
        rng = np.random.RandomState(seed)
        if self._programme.heads == 0:
            values = [rng.randint(0, WIDTH, (4, 3)) for _ in self._contexts]
        else:
            values = [rng.uniform(-1, 1, (4, WIDTH)) for _ in self._contexts]
        arrays = [mx.nd.array(value, ctx=ctx, dtype=self._dtype) for value, ctx in zip(values, self._contexts)]
        for array in arrays if variable else ():
            array.attach_grad()
        return arrays

    def _forward(self, net, inputs, seed):
        if self._random:
            mx.random.seed(seed)
        return [output for x in inputs for output in _listed(net(x))]

    def _pass(self, net, inputs, seed, poison=None):
        with autograd.record():
            outputs = self._forward(net, inputs, seed)
            losses = [((output - 0.3) ** 2).mean() for output in outputs]
            if poison is not None:
                losses = [loss * poison for loss in losses]
        autograd.backward(losses)
        return outputs

    def _backward(self, seed, variable):
        reference = self._reference
        if self._programme.heads == 0:
            variable = False  # of token numbers
        heads = {name.rpartition("_")[0] for name in self._params if name.startswith("net_head_")}
        for head in heads or {""}:
            needed = {name for name in self._params if not name.startswith("net_head_") or name.startswith(f"{head}_")}
            if needed <= reference.frozen and not variable:
                return  # MXNet has nothing to do for this output, and raises
        mine, theirs = self._batch(seed, variable), self._batch(seed, variable)
        outputs, expected = self._both(
            lambda: self._pass(self._net, mine, seed), lambda: self._pass(reference.net, theirs, seed)
        )
        reference.backward_ran()
        self._called = True
        mx.nd.waitall()
        for one, other in zip(outputs, expected):
            self._close("output", "output", one, other)
        for one, other in zip(mine, theirs) if variable else ():
            self._close("input gradient", "gradient of the input", one.grad, other.grad)
        for name, param in self._params.items():
            if name not in reference.frozen and param.grad_req != "null":
                for one, other in zip(param.list_grad(), reference.params[name].list_grad()):
                    self._close("gradient", f"gradient of {name}", one, other)
        for param, array in ((self._params[name], array) for name, array in self._attached.items()):
            if param.grad_req != "null" or param.data() is not array:
                # Its own gradient was requested since, which replaces the one that was attached; and without that of
                # a weight, MKL-DNN computes none for its bias.
                self._attached = {}
        for name, array in self._attached.items():
            if name in reference.frozen and reference.request[name] == "write":
                kind = "attached gradient"
                self._close(kind, f"gradient attached to {name}", array.grad, reference.params[name].grad())

    def _predict(self, seed):
        batch = self._batch(seed)
        outputs, expected = self._both(
            lambda: self._forward(self._net, batch, seed), lambda: self._forward(self._reference.net, batch, seed)
        )
        self._called = True
        mx.nd.waitall()
        for one, other in zip(outputs, expected):
            self._close("prediction", "prediction", one, other)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _ready(self, k):
        """Run a backward pass if the next step needs one; return whether there is such a trainer."""
        if k < len(self._trainers) and self._reference.needs_backward(k):
            self._backward(k, False)
        return k < len(self._trainers)

    def _step(self, k):
        if self._ready(k):
            self._update(k, lambda trainer: trainer.step(1))

    def _allreduce(self, k):
        def step(trainer):
            trainer.allreduce_grads()
            trainer.update(1)

        if self._ready(k) and not self._programme.store.get("update_on_kvstore", self._programme.contexts == 2):
            self._update(k, step)

    def _update(self, k, step):
        self._reference.notice(k)
        self._both(lambda: step(self._trainers[k]), lambda: self._reference.step(k, step))

    def _zero_grad(self):
        self._on_nets(lambda net: net.collect_params().zero_grad())

    def _on_nets(self, action):
        return self._both(lambda: action(self._net), lambda: action(self._reference.net))

    # -- multipliers --------------------------------------------------------------------------------------------------

    def _set(self, k, door, targets, value):
        reference = self._reference
        targets = [target for target, _ in self._disjoint([(target, value) for target in targets])]
        names = [name for target in targets for name in self._names(target)]
        if not names or k >= len(self._trainers) or not set(names) <= reference.members[k]:
            return
        trainer, number = self._trainers[k], _multiplier(value)
        if door in ("trainer", "names"):
            if callable(number) and not self._clocked:
                return
            if any(table.keys() & set(names) for i, table in enumerate(reference.tables) if i != k):
                return  # said by another door before, and looked at after
            keys = names if door == "names" else [self._target(target) for target in targets]
            self._both(
                lambda: trainer.set_lr_mult(dict.fromkeys(keys, number)), lambda: reference.set(k, names, number)
            )
        elif door == "optimizer":
            # What came last is unknown to a trainer that finds both a table and a Parameter changed: it raises.
            changed = reference.assigned.keys() | reference.turned[k]
            if not any(reference.tables) and not changed & set(names):
                trainer.optimizer.set_lr_mult(dict.fromkeys(names, number))
                reference.tables[k] = dict.fromkeys(names, number)
        elif not any(table.keys() & set(names) for table in reference.tables):
            for found in map(self._target, targets):
                if door == "setattr" and isinstance(found, gluon.Block):
                    found.collect_params(".*(weight|bias|gamma|beta)").setattr("lr_mult", number)
            for name in names:
                self._params[name].lr_mult = number
            reference.assigned.update(dict.fromkeys(names, number))

    def _target(self, name):
        return self._params[name] if name in self._params else self._blocks[name]

    def _settled(self):
        """Whether nothing was assigned that the trainer has not looked at, and no schedule acts."""
        reference = self._reference
        return not (reference.assigned or any(reference.tables) or reference.schedules)

    def _freeze(self, target):
        names = self._names(target)
        if names and self._settled():
            self._both(
                lambda: multitrainer.freeze(self._target(target), within=self._net),
                lambda: self._reference.freeze(names),
            )

    def _unfreeze(self, target):
        names = self._names(target)
        if names and self._settled():
            self._both(
                lambda: multitrainer.unfreeze(self._target(target), within=self._net),
                lambda: self._reference.unfreeze(names),
            )

    def _decay(self, k, target, value):
        names = self._names(target)
        if k < len(self._trainers) and names and set(names) <= self._reference.members[k]:
            self._both(
                lambda: self._trainers[k].set_wd_mult({self._target(target): value}),
                lambda: self._reference.set_decay(k, names, value),
            )

    def _hyper(self, k, name, value):
        kind, given = self._programme.optimizer
        impossible = {
            "learning_rate": self._programme.lr_scheduler is not None,
            "momentum": "momentum" not in given,
            "wd": kind == "nag",  # stock itself does not repeat its bits then
        }
        if k >= len(self._trainers) or impossible[name]:
            return
        for trainer in (self._trainers[k], self._reference.trainers[k]):
            if name == "learning_rate":
                trainer.set_learning_rate(value)
            else:
                setattr(trainer.optimizer, name, value)

    # -- Parameters ---------------------------------------------------------------------------------------------------

    def _grad_req(self, target, request):
        names = self._names(target)
        for name in names:
            self._params[name].grad_req = request
            self._attached.pop(name, None)
        self._reference.ask_for(names, request)
        if names:
            self._trace_again()

    def _trace_again(self):
        """Hybridize anew where a gradient was asked for by hand: MXNet's static traces do not bear that."""
        if self._mode is not None and self._mode.get("static_shape"):
            self._hybridize(self._mode)

    def _set_data(self, target, seed):
        if not self._called:
            return
        rng = np.random.RandomState(seed)
        for name in self._names(target):
            values = mx.nd.array(rng.uniform(-0.4, 0.4, self._params[name].shape), dtype=self._dtype)
            for param in (self._params[name], self._reference.params[name]):
                param.set_data(values)
        self._held.clear()

    def _save_parameters(self):
        if self._called:
            self._on_nets(lambda net: net.save_parameters(self._file(net)))
            self._saved["parameters"] = self._dtype

    def _load_parameters(self):
        if self._saved.get("parameters") == self._dtype:
            self._on_nets(lambda net: net.load_parameters(self._file(net)))
            self._held.clear()

    def _file(self, net):
        return os.path.join(self._folder, "mine.params" if net is self._net else "theirs.params")

    def _attach(self, target):
        if not self._called or len(self._contexts) > 1 or target.endswith("bias"):
            return  # alone, a bias gets no gradient: MKL-DNN computes it beside that of the weight
        params = {name: self._params[name] for name in self._names(target)}
        if any(param.grad_req != "null" for param in params.values()):
            return
        for name, param in params.items():
            if name in self._reference.frozen:
                self._attached[name] = param.data()
                self._attached[name].attach_grad()
                self._trace_again()

    def _cast(self, dtype):
        if not self._called or not self._settled() or self._programme.optimizer[0] not in DOUBLE:
            return
        self._on_nets(lambda net: net.cast(dtype))
        self._dtype = dtype
        self._saved.clear()
        self._attached.clear()
        self._held.clear()
        self._reference.fresh.clear()
        self._new_trainers()

    # -- files and copies ---------------------------------------------------------------------------------------------

    def _save_states(self, k):
        if self._called and k < len(self._trainers):
            mine, theirs = self._files(k)
            _, self._saved[k] = self._both(
                lambda: self._trainers[k].save_states(mine), lambda: self._reference.save(k, theirs)
            )

    def _load_states(self, k):
        reference = self._reference
        if reference.schedules and "add" in reference.request.values():
            return  # a schedule may unfreeze what was frozen in the file, or what was not, and that is not told apart
        if k in self._saved and self._clocked and reference.can_load(k, self._saved[k]):
            mine, theirs = self._files(k)
            self._both(lambda: self._trainers[k].load_states(mine), lambda: reference.load(k, theirs, self._saved[k]))

    def _resume(self, k):
        """Go on with new trainers from files that are written now."""
        if not self._called or not self._settled() or not self._clocked:
            return
        for each in range(len(self._trainers)):
            self._save_states(each)
        self._new_trainers()
        for each in range(len(self._trainers)):
            self._load_states(each)

    def _files(self, k):
        return tuple(os.path.join(self._folder, f"{who}{k}") for who in ("mine", "theirs"))

    def _copy(self, how, seed):
        """Copy the network, and see that the copy predicts what the network does."""
        if not self._called or any(kind == "symbol" for _, kind in self._programme.stages):
            return  # a SymbolBlock is a trace, which stock cannot copy
        if self._mode is not None:
            self._net.hybridize(False)  # nor any other
        make = copy.deepcopy if how == "deepcopy" else lambda net: pickle.loads(pickle.dumps(net))
        batch = self._batch(seed)
        results = self._on_nets(lambda net: self._forward(make(net), batch, seed))
        mx.nd.waitall()
        for one, other in zip(*results):
            self._close("copy", "prediction of the copy", one, other)
        if self._mode is not None:
            self._hybridize(self._mode)

    def _hybridize(self, mode):
        self._mode = mode
        if mode is None:
            self._net.hybridize(False)
        else:
            self._net.hybridize(**mode)

    # -- errors -------------------------------------------------------------------------------------------------------

    def _error(self, where, seed):
        """Raise inside a forward pass, which changes nothing."""
        if not self._called:
            return
        for net in (self._net, self._reference.net):
            inputs = self._batch(seed)
            if where == "shape":
                inputs = [mx.nd.concat(x, x, dim=1) for x in inputs]
            else:
                net.fuse.blown = True
                if net is self._net:
                    self._hybridize(self._mode)  # a layer is not called while a trace runs
            try:
                with autograd.record():
                    self._forward(net, inputs, seed)
                mx.nd.waitall()
            except Exception:
                _drain()
            net.fuse.blown = False

    def _can_fail(self, k):
        """Whether a step that fails half way leaves nothing behind but weights."""
        name, _ = self._programme.optimizer
        mine = self._trainers[k].optimizer if k < len(self._trainers) else None
        return (
            self._called
            and mine is not None
            and name == "sgd"
            and mine.momentum == 0
            and self._reference.trainers[k].optimizer.momentum == 0
            and self._programme.lr_scheduler is None
            and not self._programme.store
            and len(self._contexts) == 1
            and self._settled()
            and set(self._reference.request.values()) == {"write"}
        )

    def _engine_error(self, k, seed):
        """Have an operator fail in the engine in a backward pass, and step."""
        if not self._can_fail(k) or len(self._reference.frozen) == len(self._params):
            return
        poison = mx.nd.random.normal(0, -1, shape=(1,), dtype=self._dtype, ctx=self._contexts[0])
        try:
            self._pass(self._net, self._batch(seed), seed, poison)
            self._trainers[k].step(1)
        except Exception:
            pass
        self._after_failure()

    def _interrupt(self, k, seed, call):
        """Press Ctrl-C in the middle of a step."""
        if not self._can_fail(k) or len(self._reference.frozen) == len(self._params):
            return
        self._backward(seed, False)
        calls = [0]

        def trace(frame, event, arg):
            calls[0] += 1
            if calls[0] == call:
                raise KeyboardInterrupt

        sys.settrace(trace)
        try:
            self._trainers[k].step(1)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        self._after_failure()

    def _after_failure(self):
        """Go on from the weights that a failed step left; its count of updates matters no more."""
        self._clocked = False
        _drain()
        for mine, theirs in self._pairs:
            theirs.set_data(mine.data())
        self._reference.fresh.clear()

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _compare(self):
        """Compare weights, statistics, multipliers and clocks, and see that what is frozen has all its bits."""
        if not self._called:
            return
        reference = self._reference
        mx.nd.waitall()  # reading changes the layout of an array, which an operator under way may read
        frozen = reference.frozen | {
            stat.name
            for layer in self._statistics
            if {layer.gamma.name, layer.beta.name} <= reference.frozen
            for stat in (layer.running_mean, layer.running_var)
        }
        held = {}
        for mine, theirs in self._pairs:
            name = mine.name
            for i, (one, other) in enumerate(zip(mine.list_data(), theirs.list_data())):
                array = one.asnumpy()
                # A new kvstore hands out what the first context has, under stock too: statistics differ there.
                if name in frozen and (i == 0 or name in self._params):
                    held[name, i] = array.tobytes()
                    if self._held.get((name, i), held[name, i]) != held[name, i]:
                        raise Difference("frozen", f"{name}, which is frozen, has moved")
                self._close("weight", name, array, other)
        self._held = held
        self._attached = {name: array for name, array in self._attached.items() if name in frozen}
        for name, param in self._params.items():
            said = reference.assigned.get(name, reference.multiplier[name])
            if param.lr_mult != said:
                raise Difference("multiplier", f"lr_mult of {name} is {param.lr_mult}, not {said}")
        for mine, other in zip(self._trainers, reference.trainers) if self._clocked else ():
            if mine.optimizer.num_update != other.optimizer.num_update:
                counts = mine.optimizer.num_update, other.optimizer.num_update
                raise Difference("count", "num_update is {}, not {}".format(*counts))
            if mine.learning_rate != other.learning_rate:
                raise Difference("rate", f"learning_rate is {mine.learning_rate}, not {other.learning_rate}")

    def _close(self, kind, what, one, other):
        one, other = (x if isinstance(x, np.ndarray) else x.asnumpy() for x in (one, other))
        relative, least = TOLERANCE[self._dtype]
        if not abs(other).max() < LARGE:
            raise Impossible(f"{what} grows without bounds in the reference")
        worst = abs(one - other).max()
        if not worst <= relative * abs(other).max() + least:
            raise Difference(kind, f"{what} differs by {worst:.3g}, of {abs(other).max():.3g}")


class Schedule:
    """A multiplier by the number of the update, of a kind that copies and pickles."""

    def __init__(self, name, n):
        self._name, self._n = name, n

    def __call__(self, t):
        return SCHEDULES[self._name](self._n, t)


def _multiplier(value):
    """Return a multiplier as a trainer takes it: a schedule is written down as its name and a number."""
    return Schedule(*value) if isinstance(value, tuple) else value


def _drain():
    """Wait until all has run, and let go of what failed meanwhile."""
    while True:
        try:
            return mx.nd.waitall()
        except mx.MXNetError:
            pass


def _listed(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


# -- shortening them --------------------------------------------------------------------------------------------------


def shorten(programme, kind, budget=300, subject=MultiLRTrainer):
    """Return the smallest programme found that comes to a difference of the same kind."""
    left = [budget]

    def fails(candidate):
        left[0] -= 1
        try:
            found = difference(candidate, subject)
        except Exception:  # of the reference or of stock MXNet: no programme
            return False
        return found is not None and found.kind == kind

    changed = True
    while changed and left[0] > 0:
        changed = False
        for candidate in _smaller(programme):
            if left[0] <= 0:
                break
            if fails(candidate):
                programme, changed = candidate, True
                break
    return programme


def _smaller(programme):
    """Yield programmes with something left out, the largest parts first."""
    replace, ops = dataclasses.replace, programme.ops
    size = len(ops)
    while size:
        for start in range(0, len(ops), size):
            yield replace(programme, ops=ops[:start] + ops[start + size :])
        size //= 2
    for part in programme.stages:
        yield replace(programme, stages=tuple(each for each in programme.stages if each != part))
    for entry in programme.entries:
        yield replace(programme, entries=tuple(each for each in programme.entries if each != entry))
    plain = Programme((), ())
    for name in ("contexts", "store", "fast", "optimizer", "lr_scheduler", "trainers", "request", "deferred"):
        value = getattr(plain, name) if name != "fast" else False
        if getattr(programme, name) != value:
            yield replace(programme, **{name: value})
    if programme.heads == 2:
        yield replace(programme, heads=1)
    for mode in MODES[: MODES.index(programme.mode)]:
        yield replace(programme, mode=mode)
