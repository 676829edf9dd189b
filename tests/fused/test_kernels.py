"""The kernels give the bits of stock's operators, and free what they own."""

import contextlib
import gc
import logging
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet import autograd, gluon

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
from multitrainer import MultiLRTrainer
from multitrainer.fused import kernels
from support import backward, batches, bits, convolution, run_python

require_kernels()


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
    st.sampled_from(["sgd", "nag", "adam", "adamw"]),
    st.floats(1e-12, 1e3),
    st.just(0) | st.floats(1e-6, 0.999),
    st.just(0) | st.floats(1e-12, 10),
    st.integers(1, 10**6),
)
def test_every_bit_is_that_of_stock_for_random_shapes_and_numbers(shapes, name, rate, momentum, decay, batch_size):
    given = {"learning_rate": rate, "wd": decay}
    given.update({"beta1": momentum} if "adam" in name else {"momentum": momentum})
    found = []
    for kind in (gluon.Trainer, MultiLRTrainer):
        params = parameters(shapes)
        trainer, values = kind(params, name, dict(given)), np.random.RandomState(3)
        for _ in range(3):
            backward_pass(params, values)
            trainer.step(batch_size)
        found.append([bits(param.list_data()) for param in params])
    assert found[0] == found[1]


def test_an_error_of_another_operator_surfaces_where_it_does_with_stock():
    """A step neither raises the error nor hides it."""
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


@pytest.mark.parametrize("ignore", [False, True])
def test_stale_gradients_raise_or_are_ignored_as_with_stock(ignore):
    """The error names the same Parameter, or the same ones are left out."""
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


@pytest.mark.parametrize("name", ["sgd", "nag", "adam", "adamw"])
@pytest.mark.parametrize("waiting", [False, True])
def test_weights_in_a_layout_of_mkldnn_give_the_same_bits(waiting, name):
    """A prediction between backward and step changes the layout of weights, and may still be under way."""
    given = {"learning_rate": 0.005} if "adam" in name else {"learning_rate": 0.05, "momentum": 0.9}
    given["wd"] = 0 if name == "nag" else 1e-2  # with it, NAG depends on the layout, which varies with stock
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
    """Return how many bytes of memory this process uses."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_trainers_leak_no_memory_after_predictions():
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


def test_predictions_in_another_thread_do_not_disturb_updates():
    """They read weights and change their layout all the time, and stay finite."""
    # Operations of two threads that need the same arrays can deadlock, with stock too: MXNet's engine accepts them from
    # one thread at a time (https://github.com/apache/mxnet/issues/12393).
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


SCRIPT = """
import multitrainer
import mxnet as mx
from mxnet import gluon
from multitrainer import MultiLRTrainer
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
    print(net.weight.data().asnumpy().tobytes().hex())
"""


@pytest.mark.slow
def test_weights_are_those_of_stock_under_an_engine_that_waits(monkeypatch):
    monkeypatch.setenv("MXNET_ENGINE_TYPE", "NaiveEngine")
    done = run_python(SCRIPT)
    stock, ours = done.stdout.split()
    assert stock == ours


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which the compiled kernels are looked for; empty at first."""
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    kernels.load_kernels.cache_clear()
    yield tmp_path
    kernels.load_kernels.cache_clear()


@pytest.mark.parametrize("content", [None, b"", bytes(1 << 16)])
def test_kernels_that_are_missing_or_damaged_leave_the_update_to_stock(content, folder, stock_updates, caplog):
    expected = run(*build(gluon.Trainer, "sgd", {"momentum": 0.9}))
    if content is not None:
        (folder / "_kernels.abi3.so").write_bytes(content)
    del stock_updates[:]
    with caplog.at_level(logging.INFO, "multitrainer"):
        assert run(*build(MultiLRTrainer, "sgd", {"momentum": 0.9})) == expected
    assert len(stock_updates) == 4
    assert len(caplog.messages) == 1
    assert ("no C compiler" if content is None else "cannot be loaded") in caplog.text


SOURCE = Path(__file__).parents[2] / "src/multitrainer/fused/kernels.c"
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@needs_compiler
def test_kernels_are_built_on_a_machine_with_a_compiler():
    """A build without them is no error, so that a mistake in the source would turn the fast update off in silence."""
    subprocess.run(["cc", "-std=gnu99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(SOURCE)], check=True)
    assert kernels.load_kernels() is not None


@needs_compiler
@pytest.mark.parametrize(
    "change", [("#define VERSION 1", "#define VERSION 0"), ("int32_t kernel;", "int64_t another, kernel;")]
)
def test_kernels_of_another_version_are_not_used(change, folder, caplog):
    """As an editable installation has them after an update of the source."""
    assert change[0] in SOURCE.read_text()
    (folder / "kernels.c").write_text(SOURCE.read_text().replace(*change))
    subprocess.run(["cc", "-std=gnu99", "-shared", "-fPIC", "-o", kernels.LIBRARY, "kernels.c"], cwd=folder, check=True)
    assert kernels.load_kernels() is None
    assert "of another version" in caplog.text


@needs_compiler
def test_kernels_are_not_compiled_to_other_bits(tmp_path):
    done = subprocess.run(["cc", "-ffast-math", "-fsyntax-only", str(SOURCE)], stderr=subprocess.PIPE, check=False)
    assert done.returncode
    assert b"without -ffast-math" in done.stderr


def test_a_forked_process_trains(monkeypatch):
    """The threads of a team do not survive a fork; MXNet's operators have one thread there."""
    monkeypatch.setenv("MXNET_ENGINE_TYPE", "NaiveEngine")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    done = run_python(
        """
        import os, sys
        from multitrainer import MultiLRTrainer
        import mxnet as mx
        param = mx.gluon.Parameter("weight", shape=(300, 513))
        param.initialize()
        trainer = MultiLRTrainer([param], "sgd", {"momentum": 0.9}, kvstore=None)
        def train():
            for _ in range(3):
                param.grad()[:] = 1
                param.data()._fresh_grad = True
                trainer.step(1)
            param.data().wait_to_read()
        train()
        child = os.fork()
        if not child:
            train()
            os._exit(7)
        print(os.waitpid(child, 0)[1] >> 8)
        """
    )
    assert done.stdout == "7\n", done.stderr
