"""The fused update changes no behaviour of stock, and leaves to it the cases that it does not cover."""

import contextlib
import copy
import logging
import pickle
import signal

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.contrib import amp

from fused_support import (
    IDS,
    OPTIMIZERS,
    SHAPES,
    backward_pass,
    build,
    counts,
    fail_in_the_engine,
    parameters,
    require_kernels,
    run,
)
from multitrainer import MultiLRTrainer, unfreeze_at
from multitrainer.fused import update
from support import CONTEXTS, backward, batches, bits, convolution, fingerprint, mlp, same, train

SINGLE_THREAD_VALUES = update.SINGLE_THREAD_VALUES

require_kernels()


def schedule(name):
    if name == "factor":
        return mx.lr_scheduler.FactorScheduler(step=2, factor=0.7, base_lr=0.0123)
    return mx.lr_scheduler.CosineScheduler(max_update=5, base_lr=0.0123, warmup_steps=2)


@pytest.mark.parametrize("scheduler", ["factor", "cosine"])
@pytest.mark.parametrize("name", ["sgd", "nag", "adam", "adamw"])
def test_an_lr_scheduler_gives_the_same_bits(name, scheduler):
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params = parameters(SHAPES)
        trainer = kind(params, name, {"lr_scheduler": schedule(scheduler), "begin_num_update": 1})
        found.append((*run(params, trainer, steps=7), counts(trainer), vars(trainer._optimizer.lr_scheduler)))
    assert found[0] == found[1]


class Recording(mx.lr_scheduler.LRScheduler):
    """Records each call, and answers with a function of its number."""

    def __init__(self, answer):
        super().__init__(0.1)
        self.answer, self.calls = answer, []

    def __call__(self, num_update):
        self.calls.append(num_update)
        return self.answer(len(self.calls))


def train_with_scheduler(kind, name, answer, steps=5):
    """Train with such a scheduler; return the errors, states and counts of every step, and the scheduler's calls."""
    params = parameters(SHAPES)
    trainer = kind(params, name, {"lr_scheduler": Recording(answer), "wd": 1e-3})
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
    return history, trainer.optimizer.lr_scheduler.calls


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
@pytest.mark.parametrize("name", ["sgd", "nag", "adam", "adamw"])
def test_an_lr_scheduler_may_answer_or_raise_anything(answer, name):
    """It is asked what stock asks it, and an error leaves the same state as with stock."""
    expected, asked = train_with_scheduler(gluon.Trainer, name, ANSWERS[answer])
    assert any(raised for raised, *_ in expected) or not answer.startswith("an")
    assert train_with_scheduler(MultiLRTrainer, name, ANSWERS[answer]) == (expected, asked)


def test_an_lr_scheduler_is_asked_once_after_a_prediction():
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        net = convolution()
        scheduler = Recording(lambda call: 0.05 / call)
        trainer = kind(net.collect_params(), "sgd", {"lr_scheduler": scheduler})
        for x, y in batches(4):
            backward(net, x, y)
            net(x)
            mx.nd.waitall()
            trainer.step(len(x))
        found.append((scheduler.calls, bits([param.data() for param in net.collect_params().values()])))
    assert found[0] == found[1]


def test_values_set_between_steps_take_effect_at_the_next_step():
    """Learning rate, multipliers, momentum and weight decay, as with stock."""

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
def test_fused_and_stock_updates_may_alternate(name, given, monkeypatch, stock_updates):
    def between(trainer, number):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, str(number % 2))

    expected = run(*build(gluon.Trainer, name, dict(given)), steps=6)
    del stock_updates[:]
    assert run(*build(MultiLRTrainer, name, dict(given)), 6, between) == expected
    assert len(stock_updates) == 3


@pytest.mark.parametrize("name", ["sgd", "nag", "adam", "adamw"])
def test_freezing_and_unfreezing_give_the_same_bits(name, monkeypatch):
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
    """Interrupts this process once, as Ctrl-C does, while the update is prepared."""

    def emit(self, record):
        logging.getLogger("multitrainer").removeHandler(self)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("what", ["an interrupt", "an operator that fails"])
def test_an_error_in_the_first_update_after_an_unfreeze_leaves_no_trace(what, monkeypatch, caplog):
    """The unfrozen parameter trains as it does without the fused update."""
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


@pytest.mark.parametrize("what", ["network", "Parameter", "trainer"])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_and_pickles_train_as_with_stock(what, how):
    """Every copy that stock allows can be made, and the original and the copy both train on."""

    def trained(kind, copies):
        net = mlp(batchnorm=False)
        trainer = kind(net.collect_params(), "sgd", {"momentum": 0.9})
        history = train(net, trainer, batches(3))
        if copies:
            copied = how({"network": net, "Parameter": net[0].weight, "trainer": trainer}[what])
            if what == "trainer" and how is not copy.copy:
                for param in copied._params:  # the copy of an array is not a variable, with stock either
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


def test_a_step_inside_record_raises_as_with_stock():
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


@pytest.mark.parametrize("name", ["sgd", "nag", "adam", "adamw"])
def test_saved_states_fit_stock_and_fused_updates(name, tmp_path, monkeypatch):
    """A run saved with one of them resumes bit for bit with the other."""
    given = {"learning_rate": 0.01, "momentum": 0.9} if "adam" not in name else {}
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
def test_cases_that_are_not_covered_are_left_to_stock(make, stock_updates):
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
    """The engine has one lock for all parts of an array: an operation that asks for it twice hangs."""
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
def test_a_part_of_an_array_is_fused_if_no_other_part_takes_part(stock_updates):
    params = parameters([(20,), (20,)])
    part = mx.nd.ones(60)[30:50]
    autograd.mark_variables(part, params[0].grad())
    params[0]._data = [part]
    run(params, MultiLRTrainer(params, "sgd", {"momentum": 0.9}))
    assert len(stock_updates) == 1


@pytest.mark.parametrize("number", ["1", "2"])
def test_the_environment_switch_turns_it_off(number, monkeypatch, stock_updates):
    monkeypatch.setenv(update.ENVIRONMENT_SWITCH, number)
    run(*build(MultiLRTrainer, "adam"))
    assert len(stock_updates) == 1
    monkeypatch.setenv(update.ENVIRONMENT_SWITCH, "0")
    run(*build(MultiLRTrainer, "adam"))
    assert len(stock_updates) == 5


def test_the_log_names_the_kernel(caplog):
    with caplog.at_level(logging.INFO, "multitrainer"):
        run(*build(MultiLRTrainer, "adam"))
    assert [record.message for record in caplog.records] == ["ADAM: one operation updates all 7 Parameters"]


def test_the_operation_is_prepared_once_for_the_same_arrays(caplog):
    params, trainer = build(MultiLRTrainer, "sgd")
    with caplog.at_level(logging.INFO, "multitrainer"):
        run(params, trainer)
        assert len(caplog.records) == 1
        params[0].grad_req = "null"
        params[0].grad_req = "write"
        run(params, trainer)
        assert len(caplog.records) == 2


@pytest.mark.slow
def test_a_real_network_with_worker_processes_gives_the_same_bits(monkeypatch, stock_updates):
    """ResNet-18 is fused without lowering any threshold; a DataLoader forks its workers meanwhile."""
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


@pytest.mark.parametrize("clear", [lambda updater: updater.states.clear(), lambda updater: updater.states.pop(0)])
@pytest.mark.parametrize("rule", ["sgd", "nag", "adam", "adamw"])
def test_cleared_states_are_created_again(clear, rule, monkeypatch):
    """Users clear them to reset momentum; it works as without the fused update."""

    def run(switch):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, switch)
        mx.random.seed(1)
        net = mx.gluon.nn.HybridSequential(prefix="net_")
        net.add(*(mx.gluon.nn.Dense(16, in_units=16) for _ in range(16)))
        net.initialize()
        params = {"learning_rate": 0.1, **({} if "adam" in rule else {"momentum": 0.9})}
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
