"""The update in one operation gives the bits of stock's operators, and leaves to them what it does not cover."""

import contextlib
import copy
import gc
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet import autograd, gluon
from mxnet.contrib import amp

from multitrainer import MultiLRTrainer, unfreeze_at
from multitrainer.fused import float_parsing, update
from support import CONTEXTS, backward, batches, bits, convolution, fingerprint, mlp, same, train

SHAPES = [(1,), (7,), (33, 5), (16, 3, 7, 7), (200, 513), (17,), (1, 1)]
OPTIMIZERS = [
    ("sgd", {"learning_rate": 0.1}),
    ("sgd", {"learning_rate": 0.0123, "wd": 1.3e-4}),
    ("sgd", {"learning_rate": 0.0123, "wd": 1.3e-4, "momentum": 0.9}),
    ("nag", {"learning_rate": 0.0123, "wd": 1.3e-4}),
    ("nag", {"learning_rate": 0.0123, "wd": 1.3e-4, "momentum": 0.9}),
    ("adam", {"wd": 1.3e-4}),
    ("adam", {"learning_rate": 0.0123, "beta1": 0.85, "beta2": 0.97, "epsilon": 1.7e-7}),
]
IDS = [f"{name} {' '.join(given)}" for name, given in OPTIMIZERS]

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def small_is_enough(monkeypatch):
    """Let the small networks of these tests go the fast way too, and several threads share one."""
    monkeypatch.setattr(update, "MIN_PARAMETERS", 1)
    monkeypatch.setattr(update, "SINGLE_THREAD_VALUES", 1000)
    monkeypatch.delenv(update.ENVIRONMENT_SWITCH, raising=False)


@pytest.fixture
def stock_updates(monkeypatch):
    """Return a list that grows by one with each update that stock's Updater is asked for."""
    made = []
    ordinary = mx.optimizer.Updater.__call__

    def noted(self, *args):
        made.append(self)
        ordinary(self, *args)

    monkeypatch.setattr(mx.optimizer.Updater, "__call__", noted)
    return made


def parameters(shapes, dtype="float32", seed=1):
    """Return Parameters with values and multipliers of their own."""
    values, params = np.random.RandomState(seed), []
    for i, shape in enumerate(shapes):
        param = gluon.Parameter(f"p{i:03}", shape=shape, dtype=dtype)
        param.initialize()
        param.set_data(mx.nd.array(values.randn(*shape), dtype=dtype))
        param.lr_mult, param.wd_mult = 1 + 0.1 * (i % 3), 0.3 * i
        params.append(param)
    return params


def build(kind, *args, **kwargs):
    """Return Parameters and a trainer of them."""
    params = parameters(SHAPES)
    return params, kind(params, *args, **kwargs)


def backward_pass(params, values):
    """Give every Parameter a new gradient, as a backward pass does."""
    for param in params:
        scale = 10.0 ** values.uniform(-3, 3)
        for data, grad in zip(param.list_data(), param.list_grad()):
            grad[:] = mx.nd.array(scale * values.randn(*param.shape), dtype=grad.dtype, ctx=grad.context)
            data._fresh_grad = True


def run(params, trainer, steps=4, between=None):
    """Return weights and states after a few steps, with a batch size that changes."""
    values = np.random.RandomState(7)
    for number in range(steps):
        backward_pass(params, values)
        if between is not None:
            between(trainer, number)
        trainer.step(3 + number)
    return [bits(param.list_data()) for param in params], bits(trainer._updaters[0].states)


def counts(trainer):
    optimizer = trainer._optimizer
    return optimizer.num_update, optimizer._all_index_update_counts


@pytest.mark.parametrize(("name", "given"), OPTIMIZERS, ids=IDS)
def test_every_bit_is_that_of_stock(name, given, stock_updates):
    params = parameters(SHAPES)
    trainer = gluon.Trainer(params, name, dict(given))
    expected = *run(params, trainer), counts(trainer)
    del stock_updates[:]

    params = parameters(SHAPES)
    trainer = MultiLRTrainer(params, name, dict(given))
    assert (*run(params, trainer), counts(trainer)) == expected
    assert len(stock_updates) == 1, "the first update is stock's, which makes the states"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6),
    st.sampled_from(["sgd", "nag", "adam"]),
    st.floats(1e-12, 1e3),
    st.just(0) | st.floats(1e-6, 0.999),
    st.just(0) | st.floats(1e-12, 10),
    st.integers(1, 10**6),
)
def test_whatever_the_shapes_and_the_numbers(shapes, name, rate, momentum, decay, batch_size):
    given = {"learning_rate": rate, "wd": decay}
    given.update({"beta1": momentum} if name == "adam" else {"momentum": momentum})
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params = parameters(shapes)
        trainer, values = kind(params, name, dict(given)), np.random.RandomState(3)
        for _ in range(3):
            backward_pass(params, values)
            trainer.step(batch_size)
        found.append([bits(param.list_data()) for param in params])
    assert found[0] == found[1]


def schedule(name):
    if name == "factor":
        return mx.lr_scheduler.FactorScheduler(step=2, factor=0.7, base_lr=0.0123)
    return mx.lr_scheduler.CosineScheduler(max_update=5, base_lr=0.0123, warmup_steps=2)


@pytest.mark.parametrize("scheduler", ["factor", "cosine"])
@pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
def test_lr_scheduler(name, scheduler):
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params = parameters(SHAPES)
        trainer = kind(params, name, {"lr_scheduler": schedule(scheduler), "begin_num_update": 1})
        found.append((*run(params, trainer, steps=7), counts(trainer), vars(trainer._optimizer.lr_scheduler)))
    assert found[0] == found[1]


class Asked(mx.lr_scheduler.LRScheduler):
    """Remembers each question, and answers it with what it is told to."""

    def __init__(self, answer):
        super().__init__(0.1)
        self.answer, self.questions = answer, []

    def __call__(self, num_update):
        self.questions.append(num_update)
        return self.answer(len(self.questions))


def after_an_error(kind, name, answer, steps=5):
    """Return how training with such a scheduler went, errors and all."""
    params = parameters(SHAPES)
    trainer = kind(params, name, {"lr_scheduler": Asked(answer), "wd": 1e-3})
    values, history = np.random.RandomState(7), []
    for number in range(steps):
        backward_pass(params, values)
        raised = None
        try:
            trainer.step(3 + number)
        except BaseException as error:
            raised = type(error), str(error).partition("\n")[0]
        fresh = [param.data()._fresh_grad for param in params]
        state = bits([param.data() for param in params]), bits(trainer._updaters[0].states)
        history.append((raised, fresh, state, copy.deepcopy(counts(trainer))))
    return history, trainer.optimizer.lr_scheduler.questions


def raises(error):
    raise error


def interrupts():
    signal.raise_signal(signal.SIGINT)


ANSWERS = {
    "half-way between two float32": lambda call: 1 + 2.0**-24 if call % 5 == 0 else 0.1 / call,
    "not what MXNet reads": lambda call: float("nan") if call % 5 == 0 else 0.1 / call,
    "no number": lambda call: None if call % 5 == 0 else 0.1 / call,
    "an error": lambda call: raises(ValueError(str(call))) if call % 5 == 0 else 0.1 / call,
    "an interrupt": lambda call: interrupts() if call % 5 == 0 else 0.1 / call,
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
def test_an_lr_scheduler_that_answers(answer, name):
    """Whatever comes of it, it is asked what stock asks it, and errors leave behind what they leave under stock."""
    expected, asked = after_an_error(gluon.Trainer, name, ANSWERS[answer])
    assert any(raised for raised, *_ in expected) or not answer.startswith("an")
    assert after_an_error(MultiLRTrainer, name, ANSWERS[answer]) == (expected, asked)


def test_an_lr_scheduler_is_asked_once_after_a_prediction():
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        net = convolution()
        scheduler = Asked(lambda call: 0.05 / call)
        trainer = kind(net.collect_params(), "sgd", {"lr_scheduler": scheduler})
        for x, y in batches(4):
            backward(net, x, y)
            net(x)
            mx.nd.waitall()
            trainer.step(len(x))
        found.append((scheduler.questions, bits([param.data() for param in net.collect_params().values()])))
    assert found[0] == found[1]


def test_what_is_set_between_steps():
    """Learning rate, multipliers, momentum and weight decay take effect at the next step, as under stock."""

    def between(trainer, number):
        param = trainer._params[number]
        trainer.set_learning_rate(0.03 / (number + 1))
        param.lr_mult = 0.7
        param.wd_mult = 2.1
        trainer.optimizer.momentum = 0.9 - 0.1 * number
        trainer.optimizer.wd = 1e-3 * number

    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params = parameters(SHAPES)
        trainer = kind(params, "sgd", {"momentum": 0.9})
        found.append(run(params, trainer, between=between))
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "given"), OPTIMIZERS[2:], ids=IDS[2:])
def test_to_and_fro_in_mid_training(name, given, monkeypatch, stock_updates):
    def between(trainer, number):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, str(number % 2))

    expected = run(*build(gluon.Trainer, name, dict(given)), steps=6)
    del stock_updates[:]
    assert run(*build(MultiLRTrainer, name, dict(given)), 6, between) == expected
    assert len(stock_updates) == 3


@pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
def test_freezing_and_unfreezing(name, monkeypatch):
    def between(trainer, number):
        first, second = (param.name for param in trainer._multipliers.trainable[1:3])
        if number == 2:
            trainer.set_lr_mult({first: 0})
        if number == 4:
            trainer.set_lr_mult({first: 0.5, second: 0})

    def trained(switch):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, switch)
        net = mlp()
        trainer = MultiLRTrainer([net, (net[2], unfreeze_at(3))], name, {"learning_rate": 0.1, "wd": 1e-3})
        for number, (x, y) in enumerate(batches(7)):
            backward(net, x, y)
            trainer.step(len(x))
            between(trainer, number)
        return fingerprint(trainer, net)

    assert trained("1") == trained("0")


class Interrupt(logging.Handler):
    """Sends this process the signal of Ctrl-C once, while the update is prepared."""

    def emit(self, record):
        logging.getLogger("multitrainer").removeHandler(self)
        signal.raise_signal(signal.SIGINT)


def fail_in_the_engine(params):
    """Have an operator fail after it was asked for, as one in a backward pass may."""
    params[0].grad()[:] = mx.nd.random.normal(0, -1, SHAPES[0])


@pytest.mark.parametrize("what", ["an interrupt", "an operator that fails"])
def test_an_error_at_the_first_update_after_an_unfreeze(what, monkeypatch, caplog):
    """What was unfrozen trains from then on, as it does without the fast update."""
    log = logging.getLogger("multitrainer")
    monkeypatch.setattr(log, "handlers", [])

    def trained(switch):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, switch)
        params = parameters(SHAPES)
        trainer, values = MultiLRTrainer(params, "sgd", {"learning_rate": 0.1}), np.random.RandomState(7)
        for number in range(6):
            frozen = number in (2, 3)
            trainer.set_lr_mult({"p002": int(not frozen)})
            params[2].grad_req = "null" if frozen else "write"
            backward_pass([param for param in params if param.grad_req != "null"], values)
            if number == 4 and what == "an interrupt":
                log.addHandler(Interrupt())
            elif number == 4:
                fail_in_the_engine(params)
            with contextlib.suppress(KeyboardInterrupt, mx.base.MXNetError):
                trainer.step(2)
            with contextlib.suppress(mx.base.MXNetError):
                mx.nd.waitall()
        for param in params:
            param.set_data(mx.nd.ones(param.shape))
        backward_pass(params, np.random.RandomState(1))
        trainer.step(2)
        return bits([param.data() for param in params])

    with caplog.at_level(logging.INFO, "multitrainer"):
        assert trained("1") == trained("0")


def test_an_operator_that_fails_is_heard_of_where_stock_says_it():
    """A step neither raises its error nor hides it."""
    for kind in (gluon.Trainer, MultiLRTrainer):
        params, trainer = build(kind, "sgd", {"momentum": 0.9})
        run(params, trainer)
        backward_pass(params, np.random.RandomState(7))
        before = params[0].data().asnumpy()
        fail_in_the_engine(params)
        trainer.step(2)
        with pytest.raises(mx.base.MXNetError, match="scale"):
            params[0].data().asnumpy()
        with contextlib.suppress(mx.base.MXNetError):
            mx.nd.waitall()
        assert params[0].data().asnumpy().tobytes() == before.tobytes()
        run(params, trainer)


@pytest.mark.parametrize("what", ["network", "Parameter", "trainer"])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_and_pickles(what, how):
    """Each can be made that stock allows, and both go on as without it."""

    def trained(kind, copies):
        net = mlp(batchnorm=False)
        trainer = kind(net.collect_params(), "sgd", {"momentum": 0.9})
        history = train(net, trainer, batches(3))
        if copies:
            copied = how({"network": net, "Parameter": net[0].weight, "trainer": trainer}[what])
            if what == "trainer" and how is not copy.copy:
                for param in copied._params:  # a copy of an array is no variable, under stock either
                    param.grad_req = "null"
                    param.grad_req = "write"
                for number in range(2):
                    backward_pass(copied._params, np.random.RandomState(number))
                    copied.step(2)
                history.append([bits(param.data()) for param in copied._params])
        return history, bits([param.data() for param in net.collect_params().values()]), train(net, trainer, batches(3))

    expected, copied, plain = (
        trained(gluon.Trainer, True),
        trained(MultiLRTrainer, True),
        trained(MultiLRTrainer, False),
    )
    assert bits(copied) == bits(expected)
    assert bits(copied[-1]) == bits(plain[-1])


def test_a_step_inside_record_is_stocks():
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params, trainer = build(kind, "sgd", {"momentum": 0.9})
        run(params, trainer)
        backward_pass(params, np.random.RandomState(7))
        with pytest.raises(mx.base.MXNetError) as caught, autograd.record():
            trainer.step(2)
        said = str(caught.value).splitlines()[-1]
        found.append((said, bits([param.data() for param in params]), counts(trainer)))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
def test_states_are_stocks_own(name, tmp_path, monkeypatch, stock_updates):
    """A file saved on one way is gone on from on the other."""
    given = {"learning_rate": 0.01, "momentum": 0.9} if name != "adam" else {}
    expected = run(*build(MultiLRTrainer, name, dict(given)), steps=4)
    params, trainer = build(MultiLRTrainer, name, dict(given))
    run(params, trainer, steps=2)
    trainer.save_states(tmp_path / "ours")
    gluon.Trainer.save_states(trainer, str(tmp_path / "stock"))
    weights = [param.data().asnumpy() for param in params]
    for file, switch in (("ours", "1"), ("ours", "0"), ("stock", "1")):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, switch)
        params = parameters(SHAPES)
        for param, value in zip(params, weights):
            param.set_data(mx.nd.array(value))
        trainer, values = MultiLRTrainer(params, name), np.random.RandomState(7)
        trainer.load_states(tmp_path / file, allow_pickle=file == "stock")
        for number in range(4):
            backward_pass(params, values)
            if number >= 2:
                trainer.step(3 + number)
        assert ([bits(param.list_data()) for param in params], bits(trainer._updaters[0].states)) == expected


@pytest.mark.parametrize("ignore", [False, True])
def test_stale_gradients(ignore):
    """The same error at the same Parameter, or the same ones left out."""
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params = parameters(SHAPES)
        trainer, values = kind(params, "sgd", {"momentum": 0.9}), np.random.RandomState(7)
        said = ""
        for number in range(4):
            backward_pass(params, values)
            params[3].data()._fresh_grad = number != 2
            try:
                trainer.step(2, ignore_stale_grad=ignore)
            except UserWarning as error:
                said = str(error)
        fresh = [param.data()._fresh_grad for param in params]
        found.append(([bits(param.list_data()) for param in params], counts(trainer), said, fresh))
    assert found[0] == found[1]
    assert ("p003" in found[0][2]) is not ignore


@mx.optimizer.register
class OwnSGD(mx.optimizer.SGD):
    """A subclass, which may do anything."""


def uncovered():
    class OwnUpdater(mx.optimizer.Updater):
        pass

    def of(*args, ctx=None, dtype="float32", updater=None, scaler=False, **kwargs):
        def make(kind):
            params = parameters(SHAPES, dtype)
            if ctx is not None:
                for param in params:
                    param.reset_ctx(ctx)
            trainer = kind(params, *args, **kwargs)
            if updater is not None:
                trainer._updaters = [updater(trainer._optimizer)]
            if scaler:
                trainer._amp_loss_scaler = amp.loss_scaler.LossScaler()
            return params, trainer

        return make

    yield "clipped", of("sgd", {"clip_gradient": 0.1})
    yield "subclass", of("ownsgd", {"momentum": 0.9})
    yield "other optimizer", of("rmsprop")
    yield "negative momentum", of("nag", {"momentum": -0.1})
    yield "float64", of("sgd", {"momentum": 0.9}, dtype="float64")
    yield "float16", of("sgd", {"momentum": 0.9, "multi_precision": True}, dtype="float16")
    yield "two contexts", of("sgd", {"momentum": 0.9}, ctx=CONTEXTS, update_on_kvstore=False)
    yield "an Updater of the user's", of("sgd", updater=OwnUpdater)
    yield "a loss scale", of("sgd", scaler=True)
    yield "an infinite number", of("sgd", {"wd": 1e-39})


@pytest.mark.filterwarnings("ignore:Accumulating")
@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in uncovered()])
def test_what_is_not_covered_is_left_to_stock(make, stock_updates):
    params, trainer = make(gluon.Trainer)
    expected = *run(params, trainer, steps=3), counts(trainer)
    del stock_updates[:]
    params, trainer = make(MultiLRTrainer)
    assert (*run(params, trainer, steps=3), counts(trainer)) == expected
    assert len(stock_updates) == 3 * len(trainer._contexts)


def test_a_kvstore_that_updates_is_left_to_stock():
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        net = mlp(CONTEXTS)
        trainer = kind(net.collect_params(), "sgd", {"momentum": 0.9}, kvstore="local", update_on_kvstore=True)
        found.append(train(net, trainer, batches(), CONTEXTS))
        assert trainer._update_on_kvstore
    assert same(*found)


def test_sparse_gradients_are_left_to_stock(stock_updates):
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        mx.random.seed(3)
        layer = gluon.nn.Embedding(6, 3, sparse_grad=True, prefix="rows_")
        layer.initialize()
        trainer = kind(layer.collect_params(), "sgd", {"momentum": 0.9})
        del stock_updates[:]
        for number in range(3):
            with autograd.record():
                loss = layer(mx.nd.array([number, 5])).sum()
            loss.backward()
            trainer.step(1)
        assert len(stock_updates) == 3
        found.append(bits(layer.weight.list_data()))
    assert found[0] == found[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "second", [slice(20, 40), slice(30, 50), slice(0, 20)], ids=["end to end", "a gap", "the same"]
)
@pytest.mark.parametrize("what", ["weights", "gradients"])
def test_parts_of_one_array_are_left_to_stock(what, second, stock_updates):
    """The engine keeps one lock for all parts of an array: an operation that asks for it twice waits for ever."""
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params = parameters([(20,), (20,)])
        whole = mx.nd.ones(60)
        for param, part in zip(params, (whole[:20], whole[second])):
            weight, gradient = (part, param.grad()) if what == "weights" else (param.data(), part)
            autograd.mark_variables(weight, gradient)
            param._data, param._grad = [weight], [gradient]
        del stock_updates[:]
        found.append(run(params, kind(params, "sgd", {"momentum": 0.9})))
    assert found[0] == found[1]
    assert len(stock_updates) == 4


@pytest.mark.timeout(60)
def test_a_part_of_an_array_beside_arrays_of_their_own(stock_updates):
    params = parameters([(20,), (20,)])
    part = mx.nd.ones(60)[30:50]
    autograd.mark_variables(part, params[0].grad())
    params[0]._data = [part]
    run(params, MultiLRTrainer(params, "sgd", {"momentum": 0.9}))
    assert len(stock_updates) == 1


def test_small_networks_are_left_to_stock(monkeypatch, stock_updates):
    monkeypatch.setattr(update, "MIN_PARAMETERS", MIN_PARAMETERS)
    net = mlp()
    train(net, MultiLRTrainer(net, "sgd"), batches())
    assert len(stock_updates) == 4


@pytest.mark.parametrize("number", ["1", "2"])
def test_switch(number, monkeypatch, stock_updates):
    monkeypatch.setenv(update.ENVIRONMENT_SWITCH, number)
    run(*build(MultiLRTrainer, "adam"))
    assert len(stock_updates) == 1
    monkeypatch.setenv(update.ENVIRONMENT_SWITCH, "0")
    run(*build(MultiLRTrainer, "adam"))
    assert len(stock_updates) == 5


def test_a_log_says_that_it_is_taken(caplog):
    with caplog.at_level(logging.INFO, "multitrainer"):
        run(*build(MultiLRTrainer, "adam"))
    assert [record.message for record in caplog.records] == ["ADAM: one operation updates all 7 Parameters"]


@pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
@pytest.mark.parametrize("waiting", [False, True])
def test_weights_in_the_layout_of_a_prediction(waiting, name):
    """A prediction between backward and step, run or still under way, has put weights into another layout."""
    given = {"learning_rate": 0.005} if name == "adam" else {"learning_rate": 0.05, "momentum": 0.9}
    given["wd"] = 0 if name == "nag" else 1e-2  # what NAG makes of it depends on the layout, which varies under stock
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        net = convolution()
        trainer = kind(net.collect_params(), name, dict(given))
        history = []
        for number, (x, y) in enumerate(batches(6)):
            backward(net, x, y)
            if number >= 3:
                output = net(x)
                if waiting:
                    mx.nd.waitall()
                history.append(output)
            trainer.step(len(x))
        found.append((bits(history), [bits(param.list_data()) for param in net.collect_params().values()]))
    assert found[0] == found[1]


def resident():
    """Return the bytes of memory that this process occupies."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_trainers_after_predictions_leave_no_memory_behind():
    def trained():
        net = gluon.nn.HybridSequential(prefix="net_")
        net.add(*(gluon.nn.Conv2D(256, 3, padding=1, in_channels=256) for _ in range(4)))  # 9 MiB
        net.initialize()
        x = mx.nd.ones((1, 256, 4, 4))
        net(x).wait_to_read()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 1e-6, "momentum": 0.9})
        for _ in range(2):
            with autograd.record():
                loss = net(x).sum()
            loss.backward()
            net(x).wait_to_read()
            trainer.step(1)
        mx.nd.waitall()

    for _ in range(3):
        trained()
        gc.collect()
    before = resident()
    for _ in range(12):
        trained()
        gc.collect()
    assert resident() - before < 60 << 20, "a copy of the weights of each trainer would be 108 MiB"


def test_predictions_in_another_thread():
    """They read and reorder weights all the while, which neither disturbs the update nor is disturbed by it."""
    # Operations of two threads that need the same arrays can wait for each other for ever, under stock too: MXNet's
    # engine takes them from one thread at a time (https://github.com/apache/mxnet/issues/12393).
    pushing = threading.Lock()

    def trained(predicting):
        net = convolution()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.05, "momentum": 0.9})
        x = batches(1)[0][0]
        over, outputs = threading.Event(), []

        def predict():
            while not over.is_set():
                with pushing:
                    output = net(x)
                outputs.append(output.asnumpy())

        thread = threading.Thread(target=predict)
        if predicting:
            thread.start()
        try:
            values = np.random.RandomState(7)
            for _ in range(60):
                with pushing:
                    backward_pass(list(net.collect_params().values()), values)
                    trainer.step(10**4)
                time.sleep(0.001)  # for the other thread to get its turn
        finally:
            over.set()
            if predicting:
                thread.join()
        assert bool(outputs) == predicting
        assert all(np.isfinite(output).all() for output in outputs)
        return [bits(param.list_data()) for param in net.collect_params().values()]

    assert trained(predicting=True) == trained(predicting=False)


@pytest.mark.slow
def test_a_real_network_with_worker_processes(monkeypatch, stock_updates):
    """ResNet-18 takes the fast way by itself; a DataLoader forks its workers in between."""
    monkeypatch.setattr(update, "MIN_PARAMETERS", MIN_PARAMETERS)
    monkeypatch.setattr(update, "SINGLE_THREAD_VALUES", SINGLE_THREAD_VALUES)
    data = np.random.RandomState(0).rand(6, 3, 32, 32).astype("float32")
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        mx.random.seed(3)
        net = gluon.model_zoo.vision.resnet18_v1(classes=10, prefix="net_")
        net.initialize()
        net.hybridize()
        trainer = kind(net.collect_params(), "sgd", {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-4})
        del stock_updates[:]
        for _ in range(2):
            for x in gluon.data.DataLoader(gluon.data.ArrayDataset(data), batch_size=2, num_workers=1):
                with autograd.record():
                    loss = net(x.as_in_context(mx.cpu())).square().mean()
                loss.backward()
                trainer.step(1)
        found.append([bits(param.list_data()) for param in net.collect_params().values()])
    assert len(stock_updates) == 1
    assert found[0] == found[1]


MIN_PARAMETERS, SINGLE_THREAD_VALUES = update.MIN_PARAMETERS, update.SINGLE_THREAD_VALUES

SCRIPT = """
import sys
{before}
import multitrainer
import mxnet as mx
from mxnet import gluon
from multitrainer import MultiLRTrainer
from multitrainer.fused import update
update.MIN_PARAMETERS = 1
for kind in (gluon.Trainer, MultiLRTrainer):
    mx.random.seed(3)
    net = gluon.nn.Dense(3, in_units=5, prefix="net_")
    net.initialize(mx.init.Uniform(1))
    trainer = kind(net.collect_params(), "sgd", dict(momentum=0.9))
    for _ in range(3):
        with mx.autograd.record():
            loss = net(mx.nd.ones((2, 5))).square().sum()
        loss.backward()
        trainer.step(2)
    print(net.weight.data().asnumpy().tobytes().hex(), file=sys.stderr)
print(update.load_kernels() is not None)
"""


@pytest.mark.parametrize(
    ("before", "env", "expected"),
    [
        pytest.param("sys.modules['numba'] = None", {}, "False", id="no numba"),
        pytest.param("", {"MXNET_ENGINE_TYPE": "NaiveEngine"}, "True", id="waiting engine", marks=pytest.mark.slow),
        pytest.param("", {"NUMBA_DISABLE_JIT": "1"}, "False", id="nothing compiled", marks=pytest.mark.slow),
    ],
)
def test_in_a_process_of_its_own(before, env, expected):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(before=before)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [expected]
    stock, ours = [line for line in done.stderr.split() if len(line) == 8 * 15]
    assert stock == ours


def in_a_process(env):
    """Return what `SCRIPT` says of the kernels, and its log."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SCRIPT.format(before="import logging; logging.basicConfig(level=20)"),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.mark.slow
def test_a_damaged_cache_is_replaced(tmp_path):
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    in_a_process(env)
    files = [path for path in tmp_path.rglob("*.nb?") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for path in files:
        path.write_bytes(path.read_bytes()[:-7])
    available, log = in_a_process(env)
    assert available == ["True"]
    assert "could not be used" in log
    available, log = in_a_process(env)
    assert available == ["True"]
    assert "compiled" not in log


@pytest.mark.slow
def test_a_cache_that_cannot_be_replaced_is_done_without(tmp_path):
    """A folder in the place of each file stands for files that may not be written, which stops no administrator."""
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    in_a_process(env)
    for path in [path for path in tmp_path.rglob("*.nb?") if path.is_file()]:
        path.unlink()
        path.mkdir()
    available, log = in_a_process(env)
    assert available == ["True"]
    assert "could not be used" in log


# -- numbers ----------------------------------------------------------------------------------------------------------


def read_by_an_operator(value):
    weight = mx.nd.zeros(1)
    mx.nd.sgd_update(weight, -mx.nd.ones(1), out=weight, lr=value, wd=0)
    return weight.asscalar()


def read_in_a_tuple(value):
    weight = mx.nd.zeros(1)
    mx.nd.multi_sgd_update(weight, -mx.nd.ones(1), out=weight, num_weights=1, lrs=[value], wds=[0])
    return weight.asscalar()


numbers = st.one_of(
    st.floats(1e-30, 1e30),
    st.floats(1e-6, 1),
    st.integers(0, 10**6).map(lambda n: n / 10**6),
    st.integers(0, 1000),
    st.floats(2.0**-20, 1, width=32).map(np.float32),
    st.floats(2.0**-20, 1, width=32).map(lambda n: n * (1 + 2.0**-24)),  # about half-way to the next float32
)


@settings(max_examples=200, deadline=None)
@given(numbers)
def test_a_number_is_read_as_mxnet_reads_it(value):
    assert float_parsing.parse_field(str(value)) == read_by_an_operator(value)
    with contextlib.suppress(ValueError):
        assert float_parsing.parse_tuple_element(repr(value)) == read_in_a_tuple(value)


@pytest.mark.parametrize("text", ["nan", "inf", "1e-40", "1e40", "True", "1,5", "", "0x1", "[1.0]"])
def test_what_is_no_number_is_refused(text):
    for read in (float_parsing.parse_field, float_parsing.parse_tuple_element):
        with pytest.raises(ValueError, match="number"):
            read(text)


def test_half_way_is_refused():
    with pytest.raises(ValueError, match="half-way"):
        float_parsing.parse_tuple_element(repr(1 + 2.0**-24))


@pytest.mark.parametrize("clear", [lambda updater: updater.states.clear(), lambda updater: updater.states.pop(0)])
@pytest.mark.parametrize("rule", ["sgd", "nag", "adam"])
def test_states_that_the_user_has_cleared_are_made_again(clear, rule, monkeypatch):
    """The way to reset momentum; as without the fused update."""

    def run(switch):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, switch)
        mx.random.seed(1)
        net = mx.gluon.nn.HybridSequential(prefix="net_")
        net.add(*(mx.gluon.nn.Dense(16, in_units=16) for _ in range(16)))
        net.initialize()
        params = {"learning_rate": 0.1, **({} if rule == "adam" else {"momentum": 0.9})}
        trainer = MultiLRTrainer(net, rule, params, kvstore=None)
        for turn in range(4):
            with mx.autograd.record():
                value = net(mx.nd.ones((2, 16))).square().sum()
            value.backward()
            if turn == 2:
                clear(trainer._updaters[0])
            trainer.step(2)
        return np.concatenate([param.data().asnumpy().ravel() for param in net.collect_params().values()])

    # Not to the bit: the first run of an operator in a process can differ from the others, under stock too.
    assert run("1") == pytest.approx(run("0"), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["update_multi_precision", "_get_lrs"])
def test_a_method_replaced_on_the_optimizer_is_called(method):
    net = convolution()
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1, "momentum": 0.9}, kvstore=None)
    called = []
    stock = getattr(trainer.optimizer, method)
    setattr(trainer.optimizer, method, lambda *args: called.append(method) or stock(*args))
    train(net, trainer, batches(2))
    assert called
