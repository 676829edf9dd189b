"""Run a program on a network and on its reference side by side, and find differences."""

import copy
import os
import pickle
import sys
import tempfile
import warnings

import mxnet as mx
import networks
import numpy as np
from mxnet import autograd, gluon
from networks import WIDTH
from programs import DOUBLE, LR_SCHEDULERS, multiplier
from reference import Reference

import multitrainer
from multitrainer import MultiLRTrainer

TOLERANCE = {"float32": (2e-5, 1e-6), "float64": (1e-10, 1e-12)}  # relative to the largest value of an array; absolute
LARGE = 100


class Difference(Exception):  # noqa: N818
    """The trainer and the reference gave different results."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Impossible(Exception):  # noqa: N818
    """Stock MXNet cannot run the program either."""


def difference(program, subject=MultiLRTrainer):
    """Run a program; return the first `Difference`, or None."""
    os.environ["MULTITRAINER_FAST"] = "1" if program.fast else "0"
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        place = "at the beginning"
        try:
            run = Run(program, folder, subject)
            for i, op in enumerate(program.ops):
                place = f"operation {i}, {op!r}"
                run.do(op)
        except Impossible:
            pass
        except Difference as found:
            found.args = (f"{place}: {found}",)
            return found
    return None


class Run:
    """A program that is under way: a network with its trainers, and a twin with the reference."""

    def __init__(self, program, folder, subject):
        self._program, self._folder, self._subject = program, folder, subject
        self._contexts = [mx.cpu(i) for i in range(program.contexts)]
        self._dtype, self._mode = "float32", program.mode
        self._net, twin = self._network(), self._network()
        self._params, self._blocks = networks.trainable(self._net), networks.blocks(self._net)
        self._pairs = list(zip(*(net.collect_params().values() for net in (self._net, twin))))
        self._statistics = networks.batchnorms(twin)
        self._members = {name: list(networks.trainable(block)) for name, block in networks.blocks(twin).items()}
        self._members.update((name, [name]) for name in self._params)
        self._random = any(kind in networks.RANDOM for _, kind in program.stages)
        self._reference = Reference(twin)
        self._called = False
        self._clocked = True  # whether updates are counted as in the reference
        self._attached = {}
        self._saved = {}
        if program.dtype != "float32":
            self._dtype = program.dtype
            self._net.cast(self._dtype)
            twin.cast(self._dtype)
        self._hybridize(program.mode)
        if program.request != "write":
            for param in self._params.values():
                param.grad_req = program.request
            self._reference.ask_for(self._reference.params, program.request)
        self._new_trainers(program.entries)
        self._held = {}

    def do(self, op):
        """Run one operation, if it makes sense now, and compare."""
        getattr(self, "_" + op[0].replace(" ", "_"))(*op[1:])
        self._compare()

    # -- setting up ---------------------------------------------------------------------------------------------------

    def _network(self):
        program = self._program
        return networks.build(program.stages, program.heads, program.deferred, self._contexts)

    def _optimizer(self):
        name, params = self._program.optimizer
        kind = self._program.lr_scheduler
        if kind is not None:
            params = {**params, "lr_scheduler": LR_SCHEDULERS[kind](params["learning_rate"])}
        return name, dict(params)

    def _new_trainers(self, entries=()):
        net, how = self._net, self._program.trainers
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
        first = [(target, multiplier(value)) for target, (_, value) in zip(given, entries)]

        def stock():
            twin = self._reference.net
            blocks = {"two of parts": [twin.body, twin.heads]}.get(how, [twin] * len(parts))
            self._reference.new_trainers(blocks, self._optimizer, self._program.store)

        def ours():
            groups = [[part, *(() if i else first)] for i, part in enumerate(parts)]
            return [self._subject(group, *self._optimizer(), **self._program.store) for group in groups]

        self._trainers, _ = self._both(ours, stock)
        for target, value in entries:
            self._reference.set(0, self._names(target), multiplier(value))

    def _disjoint(self, entries):
        """Return the entries without those that overlap an earlier one."""
        taken, kept = set(), []
        for target, value in entries:
            names = self._names(target)
            if names and not taken & set(names) and len(names) < len(self._params):
                taken.update(names)
                kept.append((target, value))
        return kept

    def _names(self, target):
        """Return the names of the Parameters of a target; an empty list if the network does not have it."""
        return self._members.get(target, [])

    def _both(self, mine, theirs):
        """Act on both sides; raise `Difference` if only one side fails, and `Impossible` if both do."""
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
        if self._program.heads == 0:
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
        if self._program.heads == 0:
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
        """Run a backward pass if the next step of trainer `k` needs one; return whether that trainer exists."""
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

        if self._ready(k) and not self._program.store.get("update_on_kvstore", self._program.contexts == 2):
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
        trainer, number = self._trainers[k], multiplier(value)
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
        """Whether the trainers have seen all assignments, and no schedule is active."""
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
        kind, given = self._program.optimizer
        impossible = {
            "learning_rate": self._program.lr_scheduler is not None,
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
        """Hybridize again after a gradient was requested by hand, which breaks MXNet's static traces."""
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
        if not self._called or not self._settled() or self._program.optimizer[0] not in DOUBLE:
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
            return  # the reference does not know if a schedule unfreezes layers that the file froze
        if k in self._saved and self._clocked and reference.can_load(k, self._saved[k]):
            mine, theirs = self._files(k)
            self._both(lambda: self._trainers[k].load_states(mine), lambda: reference.load(k, theirs, self._saved[k]))

    def _resume(self, k):
        """Save states, and load them into new trainers."""
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
        """Copy the network, and compare the predictions of the copies."""
        if not self._called or any(kind == "symbol" for _, kind in self._program.stages):
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
        """Raise an error inside a forward pass."""
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
        """Whether a step that fails half-way changes nothing but weights."""
        name, _ = self._program.optimizer
        mine = self._trainers[k].optimizer if k < len(self._trainers) else None
        return (
            self._called
            and mine is not None
            and name == "sgd"
            and mine.momentum == 0
            and self._reference.trainers[k].optimizer.momentum == 0
            and self._program.lr_scheduler is None
            and not self._program.store
            and len(self._contexts) == 1
            and self._settled()
            and set(self._reference.request.values()) == {"write"}
        )

    def _engine_error(self, k, seed):
        """Make an operator of a backward pass fail in the engine, and step."""
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
        """Interrupt a step, as Ctrl-C does."""
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
        """Give the twin the weights that a failed step left; the counts of updates are no longer compared."""
        self._clocked = False
        _drain()
        for mine, theirs in self._pairs:
            theirs.set_data(mine.data())
        self._reference.fresh.clear()

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _compare(self):
        """Compare weights, statistics, multipliers and counts, and check that frozen arrays keep their bits."""
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


def _drain():
    """Wait for all operations, and ignore those that failed."""
    while True:
        try:
            return mx.nd.waitall()
        except mx.MXNetError:
            pass


def _listed(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
