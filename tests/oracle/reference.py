"""The expected results of training, as simple as possible: stock Trainers on a network that is not hybridized.

All gradients are always computed. The update of a frozen parameter is left out, and a BatchNorm whose gamma and beta
are both frozen uses its running statistics. Nothing here comes from multitrainer.
"""

import contextlib
import copy

from mxnet import gluon
from networks import batchnorms, trainable


class Reference:
    """A network, the stock Trainers of its Parameters, and the multipliers that were set.

    Parameters
    ----------
    net : Block
        The twin.
    """

    def __init__(self, net):
        self.net = net
        self.params = trainable(net)
        self._batchnorms = batchnorms(net)
        self.multiplier = dict.fromkeys(self.params, 1.0)
        self.before = {}  # what unfreeze() restores
        self.frozen = set()
        self.awaiting = set()  # unfrozen, but no backward pass has run since
        self.fresh = set()  # have a gradient that no step has used
        self.request = dict.fromkeys(self.params, "write")
        self.assigned = {}  # since the last step, on the Parameters

    def new_trainers(self, blocks, make, store):
        """Create a new Trainer for each of some Blocks of the network."""
        self.members = [set(trainable(block)) for block in blocks]
        self.trainers = [gluon.Trainer(block.collect_params(), *make(), **store) for block in blocks]
        self.schedules, self.ended = {}, set()
        self.tables = [{} for _ in blocks]
        self.turned = [set() for _ in blocks]  # multipliers that others have set since the trainer looked

    # -- multipliers --------------------------------------------------------------------------------------------------

    def set(self, k, names, value):
        """Set multipliers by Trainer `k`, at once."""
        self.notice(k, but=names)
        self._end(names)
        self.turn(names, but=k)
        if callable(value):
            self.schedules.update(dict.fromkeys(names, value))
            self.ended.difference_update(names)
            value = value(self.trainers[k].optimizer.num_update + 1)
        self.multiply(dict.fromkeys(names, value))

    def set_decay(self, k, names, value):
        """Set weight-decay multipliers by Trainer `k`."""
        self.notice(k)
        for name in names:
            self.params[name].wd_mult = value

    def notice(self, k, but=()):
        """Apply the multipliers that were assigned to the Parameters of Trainer `k`."""
        said = {**self.assigned, **self.tables[k]}
        self.turn((self.assigned.keys() | self.tables[k].keys()) & self.members[k], but=k)
        self.assigned = {name: value for name, value in self.assigned.items() if name not in self.members[k]}
        in_table = self.tables[k].keys() & self.members[k]
        self.tables[k] = {}
        self.turned[k] = set()
        news = {n: x for n, x in said.items() if n in self.members[k] and n not in but and x != self.multiplier[n]}
        self._end((in_table - set(but)) | news.keys())
        self.multiply(news)

    def multiply(self, multipliers):
        """Give Parameters multipliers: 0 freezes, more than 0 unfreezes."""
        for name, value in multipliers.items():
            if value == 0 and name not in self.frozen:
                self.before[name] = self.multiplier[name]
                self.frozen.add(name)
                self.awaiting.discard(name)
                self.fresh.discard(name)
            elif value != 0 and name in self.frozen:
                self.frozen.remove(name)
                self.awaiting.add(name)
                self.fresh.discard(name)
                self.params[name].zero_grad()
            self.multiplier[name] = value
            self.params[name].lr_mult = value
        self.switch_statistics()

    def turn(self, names, but=None):
        """Note that all trainers except `but` have yet to look at the multipliers of some Parameters."""
        for k, turned in enumerate(self.turned):
            turned.update(names if k != but else ())

    def freeze(self, names):
        """Freeze Parameters as the function `freeze` does."""
        self.turn(names)
        self.multiply(dict.fromkeys(names, 0))

    def unfreeze(self, names):
        """Restore the multipliers of the frozen ones among `names`."""
        self.turn(names)
        self.multiply({name: self.before[name] or 1.0 for name in names if name in self.frozen})

    def switch_statistics(self):
        """Let every frozen BatchNorm use its running statistics."""
        for layer in self._batchnorms:
            layer._kwargs["use_global_stats"] = {layer.gamma.name, layer.beta.name} <= self.frozen

    def _end(self, names):
        ended = self.schedules.keys() & set(names)
        for name in ended:
            del self.schedules[name]
        self.ended |= ended

    # -- steps --------------------------------------------------------------------------------------------------------

    def needs_backward(self, k):
        """Whether Trainer `k` needs another backward pass before it can step."""
        unfrozen = self.members[k] - self.frozen
        return bool(unfrozen) and not (self.fresh & unfrozen and unfrozen - self.awaiting <= self.fresh)

    def backward_ran(self):
        """Note that every Parameter that is not frozen has a new gradient."""
        self.awaiting.clear()
        self.fresh = set(self.params) - self.frozen

    def step(self, k, step):
        """Let Trainer `k` make one update, without frozen Parameters and those that await a backward pass."""
        trainer = self.trainers[k]
        count = trainer.optimizer.num_update + 1
        trainer.optimizer.num_update = count
        with self._left_out(self.members[k] & (self.frozen | self.awaiting)):
            step(trainer)
        trainer.optimizer.num_update = count
        self.fresh -= self.members[k]
        self.advance(count)

    @contextlib.contextmanager
    def _left_out(self, names):
        params = [self.params[name] for name in names]
        requests = [param._grad_req for param in params]
        for param in params:
            param._grad_req = "null"  # not by the property, which would let the gradient go
        try:
            yield
        finally:
            for param, request in zip(params, requests):
                param._grad_req = request

    def advance(self, count):
        """Set the multipliers that schedules have for the next update."""
        self.multiply({name: schedule(count + 1) for name, schedule in self.schedules.items()})

    def ask_for(self, names, request):
        """Set ``grad_req``, which discards the gradient."""
        for name in names:
            self.request[name] = self.params[name].grad_req = request
        self.fresh.difference_update(names)

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, k, fname):
        """Save the states of Trainer `k`; return the multipliers and schedules, which stock's file does not have."""
        self.notice(k)
        self.trainers[k].save_states(fname)
        return copy.copy(self._told(k))

    def can_load(self, k, saved):
        """Whether the schedules and requests in a file still apply."""
        acted, _, _, _, _, request = saved
        return acted <= self.schedules.keys() and request == self.request

    def load(self, k, fname, saved):
        """Load a file of `save`."""
        self.notice(k)
        self.trainers[k].load_states(fname)
        _, ended, multiplier, decay, before, _ = saved
        for name in self.members[k]:
            self.params[name].wd_mult = decay[name]
        self._end(ended & self.members[k])
        due = self.trainers[k].optimizer.num_update + 1
        told = {name: multiplier[name] for name in self.members[k]}
        self.multiply({**told, **{name: schedule(due) for name, schedule in self.schedules.items()}})
        self.before.update({name: before[name] for name in self.members[k] if multiplier[name] == 0})

    def _told(self, k):
        decay = {name: param.wd_mult for name, param in self.params.items()}
        state = set(self.schedules), self.ended, self.multiplier, decay, self.before, self.request
        return tuple(copy.copy(part) for part in state)
