"""A counted update is stock's, can be rolled back, and can be counted by stock again."""

import mxnet as mx
import pytest

from multitrainer import _mxnet

INDICES = [0, 1, 2, 3, 4]


class Recording(mx.lr_scheduler.LRScheduler):
    def __init__(self, error=None):
        super().__init__(0.1)
        self.calls, self.error = [], error

    def __call__(self, num_update):
        self.calls.append(num_update)
        if self.error is not None and len(self.calls) == 2:
            raise self.error
        return 1 / len(self.calls)


def make_optimizer(scheduler=None, aggregate=2):
    optimizer = mx.optimizer.create("sgd", learning_rate=0.1, lr_scheduler=scheduler, begin_num_update=3)
    optimizer.aggregate_num = aggregate
    optimizer.lr_mult = {1: 0.5}
    return optimizer


def state(optimizer):
    return optimizer.num_update, {k: dict(v) for k, v in optimizer._all_index_update_counts.items()}


def count_as_stock(optimizer, context=0):
    optimizer._set_current_context(context)
    size = max(optimizer.aggregate_num, 1)
    for start in range(0, len(INDICES), size):
        chunk = INDICES[start : start + size]
        optimizer._update_count(chunk)
        yield chunk, optimizer._get_lrs(chunk)


@pytest.mark.parametrize("aggregate", [0, 1, 2, 5, 7])
def test_counts_rates_and_calls_are_those_of_stock(aggregate):
    stock, ours = (make_optimizer(Recording(), aggregate) for _ in range(2))
    for _ in range(3):
        expected = list(count_as_stock(stock))
        assert list(_mxnet.ReplayableCount(ours, mx.cpu()).advance(INDICES)) == expected
        assert state(ours) == state(stock)
        assert ours.lr_scheduler.calls == stock.lr_scheduler.calls


def test_without_a_scheduler_all_rates_come_at_once():
    optimizer = make_optimizer()
    ((indices, rates),) = _mxnet.ReplayableCount(optimizer, mx.cpu(1)).advance(INDICES)
    assert (indices, rates) == (INDICES, [0.1, 0.05, 0.1, 0.1, 0.1])
    assert state(optimizer)[1] == {0: {}, 1: dict.fromkeys(INDICES, 4)}
    assert _mxnet.times_updated(optimizer, [4, 0]) == [4, 4]


def test_a_rolled_back_update_leaves_no_trace():
    optimizer = make_optimizer(Recording())
    list(_mxnet.ReplayableCount(optimizer, mx.cpu()).advance(INDICES[:2]))
    before = state(optimizer)
    count = _mxnet.ReplayableCount(optimizer, mx.cpu())
    list(count.advance(INDICES))
    assert state(optimizer) != before
    count.roll_back()
    assert state(optimizer) == before


def test_stock_counts_a_replayed_update_without_new_calls():
    optimizer, expected = make_optimizer(Recording()), make_optimizer(Recording())
    scheduler = optimizer.lr_scheduler
    rates = list(count_as_stock(expected))
    count = _mxnet.ReplayableCount(optimizer, mx.cpu())
    steps = count.advance(INDICES)
    next(steps)
    next(steps)
    with count.replayed():
        assert list(count_as_stock(optimizer)) == rates
    assert state(optimizer) == state(expected)
    assert scheduler.calls == expected.lr_scheduler.calls
    assert optimizer.lr_scheduler is scheduler


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_of_the_scheduler_is_replayed(error):
    optimizer = make_optimizer(Recording(error))
    scheduler = optimizer.lr_scheduler
    count = _mxnet.ReplayableCount(optimizer, mx.cpu())
    with pytest.raises(_mxnet.SchedulerError) as caught:
        list(count.advance(INDICES))
    assert caught.value.__cause__ is error
    with pytest.raises(type(error)) as again, count.replayed():
        list(count_as_stock(optimizer))
    assert again.value is error
    assert len(scheduler.calls) == 2
    assert optimizer.lr_scheduler is scheduler


def test_a_scheduler_that_is_replaced_meanwhile_stays():
    optimizer, other = make_optimizer(Recording()), Recording()
    with _mxnet.ReplayableCount(optimizer, mx.cpu()).replayed():
        optimizer.lr_scheduler = other
    assert optimizer.lr_scheduler is other


def test_counts_of_several_devices():
    optimizer = make_optimizer()
    for device, indices in ((0, [0, 1]), (1, [1, 2]), (1, [1])):
        optimizer._set_current_context(device)
        optimizer._update_count(indices)
    assert _mxnet.update_counts(optimizer) == {0: 4, 1: 5, 2: 4}
    assert _mxnet.updates_made(optimizer) == 4 + 4 + 5 + 4


def test_new_counts_hold_on_every_device_and_do_not_share():
    optimizer = make_optimizer()
    optimizer._set_current_context(2)
    optimizer._update_count([5])
    _mxnet.set_update_counts(optimizer, {0: 7}, [mx.cpu(1)])
    assert optimizer._all_index_update_counts == {0: {0: 7}, 1: {0: 7}, 2: {0: 7}}
    optimizer._update_count([0])
    assert optimizer._all_index_update_counts == {0: {0: 7}, 1: {0: 8}, 2: {0: 7}}
