"""AdamW is PyTorch's: the closed formula, what PyTorch was recorded to do, and how MXNet gets at it."""

import copy
import importlib
import json
import math
import pickle
import warnings

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.optimizer import Optimizer

import pytorch_adamw
from fused_support import require_kernels
from multitrainer import AdamW, MultiLRTrainer
from multitrainer.fused import update
from multitrainer.optimizers import adamw
from pytorch_adamw import CASES, GROUPS, PAUSE, STEPS, gradient, weight
from support import CONTEXTS, backward, batches, bits, mlp, moved, run_python, snapshot

BOUND = 1e-6  # relative


def distance(ours, expected):
    """Return the difference of two arrays as part of the second, by norm and by the largest value."""
    difference = np.ravel(ours).astype("float64") - np.ravel(expected)
    return max(
        np.linalg.norm(difference) / np.linalg.norm(expected), abs(difference).max() / abs(np.ravel(expected)).max()
    )


def train(settings, between=None, frozen=True, steps=STEPS):
    """Train the groups of `pytorch_adamw`, and one that is frozen; return the Parameters and the trainer."""
    params = []
    for group in range(len(GROUPS) + frozen):
        params.append(gluon.Parameter(f"p{group}", shape=pytorch_adamw.SHAPE))
        params[-1].initialize()
        params[-1].set_data(mx.nd.array(weight(group)))
    groups = [(param, *multipliers[:1]) for param, multipliers in zip(params, [*GROUPS, (0, 1)])]
    trainer = MultiLRTrainer(groups, "adamw", dict(settings))
    trainer.set_wd_mult({param: wd_mult for param, (_, wd_mult) in zip(params, GROUPS)})
    for step in range(steps):
        if step == PAUSE.start:
            trainer.set_lr_mult({params[len(GROUPS) - 1]: 0})
        if step == PAUSE.stop:
            trainer.set_lr_mult({params[len(GROUPS) - 1]: GROUPS[-1][0]})
        for group, param in enumerate(params):
            if param.grad_req != "null":
                param.grad()[:] = 8 * mx.nd.array(gradient(group, step))
                param.data()._fresh_grad = True
        trainer.step(8)
    return params, trainer


@pytest.fixture(params=["0", "1"], ids=["plain", "fused"])
def switch(request, monkeypatch):
    """Run a test by the plain and by the fused update."""
    if request.param == "1":
        require_kernels()
    monkeypatch.setenv(update.ENVIRONMENT_SWITCH, request.param)


@pytest.mark.parametrize("case", CASES)
def test_the_trajectory_is_that_of_pytorch(case, switch):
    """Recorded by `pytorch_adamw.py`: groups of three learning rates, one without decay, one frozen for a while."""
    recorded = json.loads(pytorch_adamw.FILE.read_text())[case]
    params, _ = train(CASES[case])
    distances = [distance(param.data().asnumpy(), expected) for param, expected in zip(params, recorded)]
    assert max(distances) < BOUND, distances
    assert params[-1].data().asnumpy().tobytes() == weight(len(GROUPS)).tobytes()


def test_pytorch_does_what_was_recorded():
    torch = pytest.importorskip("torch")
    recorded = json.loads(pytorch_adamw.FILE.read_text())
    for case, settings in CASES.items():
        for found, expected in zip(pytorch_adamw.train(torch, **settings), recorded[case]):
            assert distance(found, expected) < BOUND


def formula(w, gradients, lr=0.001, wd=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8, correct_bias=True):
    """Return the weight after updates by the formula in the documentation of `AdamW`; the means are in float64.

    The weight is rounded to its own type after each operation, as in PyTorch. This is not chance: a decay that is
    nearly the same in every update is rounded the same way.
    """
    m, v = np.zeros(w.shape), np.zeros(w.shape)
    for t, g in enumerate(gradients, 1):
        w = np.float32(1 - lr * wd) * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g.astype("float64") ** 2
        bias1, bias2 = (1 - beta1**t, 1 - beta2**t) if correct_bias else (1, 1)
        w = (w - lr / bias1 * m / (np.sqrt(v) / math.sqrt(bias2) + epsilon)).astype(w.dtype)
    return w


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_trajectory_is_that_of_the_formula(case, correct_bias, switch):
    settings = CASES[case]
    params, _ = train({**settings, "correct_bias": correct_bias})
    given = {"learning_rate": 0.001, "wd": 0.01, **settings, "correct_bias": correct_bias}
    for group, (lr_mult, wd_mult) in enumerate(GROUPS):
        of_group = {**given, "lr": given["learning_rate"] * lr_mult, "wd": given["wd"] * wd_mult}
        del of_group["learning_rate"]
        is_last = group == len(GROUPS) - 1
        gradients = [gradient(group, step) for step in range(STEPS) if not (is_last and step in PAUSE)]
        assert distance(params[group].data().asnumpy(), formula(weight(group), gradients, **of_group)) < BOUND


def test_fused_and_plain_updates_give_the_same_bits(monkeypatch):
    require_kernels()
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(update.ENVIRONMENT_SWITCH, switch)
        params, trainer = train(CASES["large decay"])
        found.append((bits([param.data() for param in params]), bits(trainer._updaters[0].states)))
    assert found[0] == found[1]


def update_once(optimizer, grad=0.5, w=2.0, dtype="float32"):
    weight = mx.nd.full((3,), w, dtype=dtype)
    grad = mx.nd.full((3,), grad, dtype=dtype)
    updater = mx.optimizer.get_updater(optimizer)
    updater(0, grad, weight)
    return weight.asnumpy()[0], grad.asnumpy()[0], updater.states[0]


def test_decay_is_not_part_of_the_gradient():
    """Without a gradient the weight decays by the learning rate times wd, and the means stay 0."""
    after, _, means = update_once(AdamW(learning_rate=0.1, wd=0.5), grad=0)
    assert after == pytest.approx(2 * (1 - 0.05), rel=BOUND)
    assert [mean.asnumpy().any() for mean in means] == [False, False]


def test_decay_of_0_and_a_first_update_of_the_learning_rate():
    assert update_once(AdamW(learning_rate=0.1, wd=0))[0] == pytest.approx(1.9, rel=BOUND)


def test_the_gradient_is_left_as_it_was():
    _, grad, _ = update_once(AdamW(rescale_grad=0.25))
    assert grad == 0.5


def test_gradients_are_rescaled_and_then_clipped():
    """A large epsilon makes the size of the gradient count: bias-corrected means of one gradient g are g and g**2."""
    for given, g in (({"rescale_grad": 0.5}, 0.25), ({"rescale_grad": 0.5, "clip_gradient": 0.1}, 0.1)):
        after, _, _ = update_once(AdamW(learning_rate=0.1, wd=0, epsilon=1.0, **given))
        assert after == pytest.approx(2 - 0.1 * g / (g + 1), rel=BOUND)


def test_an_update_counts_from_begin_num_update():
    """The first update is then corrected less: as Adam of MXNet counts."""
    after, _, _ = update_once(AdamW(learning_rate=0.1, wd=0, begin_num_update=9))
    bias1, bias2 = 1 - 0.9**10, 1 - 0.999**10
    assert after == pytest.approx(2 - 0.1 * (0.1 / bias1) / math.sqrt(0.001 / bias2), rel=BOUND)


def test_weights_in_float16_follow_their_master_copies():
    values = np.random.RandomState(0).randn(5, 30).astype("float16")
    found = {}
    for dtype in ("float16", "float32"):
        updater = mx.optimizer.get_updater(AdamW(learning_rate=0.01, wd=0.1, multi_precision=True))
        weight = mx.nd.array(values[0], dtype=dtype)
        for step in range(1, 5):
            updater(0, mx.nd.array(values[step], dtype=dtype), weight)
        found[dtype] = weight.asnumpy()
    assert found["float16"].dtype == np.float16
    assert found["float16"].tobytes() == found["float32"].astype("float16").tobytes()


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_weights_of_other_types(dtype):
    values = np.random.RandomState(0).randn(5, 30).astype(dtype)
    updater = mx.optimizer.get_updater(AdamW(learning_rate=0.01, wd=0.1, epsilon=1e-3))
    weight = mx.nd.array(values[0], dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MXNet's advice to use master copies
        for grad in values[1:]:
            updater(0, mx.nd.array(grad, dtype=dtype), weight)
    expected = formula(values[0], values[1:], lr=0.01, wd=0.1, epsilon=1e-3)
    assert weight.dtype == np.dtype(dtype)
    assert distance(weight.asnumpy(), expected) < (BOUND if dtype == "float64" else 1e-2)


@pytest.mark.parametrize("update_on_kvstore", [True, False])
@pytest.mark.parametrize("stype", ["default", "row_sparse"])
def test_sparse_gradients_update_all_rows(stype, update_on_kvstore):
    """As dense ones do: rows without a gradient decay, and their means too."""
    if stype == "row_sparse" and not update_on_kvstore:
        pytest.skip("MXNet lets the kvstore update row_sparse weights")

    def trained(stype, grad_stype):
        params = gluon.ParameterDict()
        table = params.get("table", shape=(4, 2), stype=stype, grad_stype=grad_stype)
        params.initialize(mx.init.One(), ctx=CONTEXTS)
        options = {} if stype == "row_sparse" else {"update_on_kvstore": update_on_kvstore}
        trainer = MultiLRTrainer(params, "adamw", {"learning_rate": 0.1, "wd": 0.5}, **options)
        every = mx.nd.arange(4)
        for step in range(3):
            tables = table.list_data() if stype == "default" else table.list_row_sparse_data(every)
            losses = []
            with mx.autograd.record():
                for each in tables:
                    rows = mx.nd.array([step, 0], ctx=each.context)
                    sparse = grad_stype == "row_sparse"
                    taken = mx.nd.Embedding(rows, each, input_dim=4, output_dim=2, sparse_grad=sparse)
                    losses.append((taken * taken).sum())
            mx.autograd.backward(losses)
            trainer.step(1)
        data = table.list_data() if stype == "default" else table.list_row_sparse_data(every)
        return data[0].asnumpy()

    expected = trained("default", "default")
    assert (expected[3] < 1).all()  # by decay alone
    assert (trained(stype, "row_sparse") == expected).all()


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("beta1", 1), ("beta2", -0.1), ("beta2", float("nan")), ("epsilon", -1e-8), ("wd", -1), ("wd", float("nan"))],
    )
    def test_bad_ones_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"{name} of AdamW must be .*, not {value}"):
            AdamW(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value", "named"),
        [
            ("lr", 0.1, "learning_rate"),
            ("betas", (0.9, 0.99), "beta1 and beta2"),
            ("eps", 1e-8, "epsilon"),
            ("weight_decay", 0.1, "wd"),
        ],
    )
    def test_names_of_pytorch_are_translated(self, name, value, named):
        with pytest.raises(TypeError, match=f"AdamW takes {named}, which is MXNet's name for '{name}' of PyTorch"):
            AdamW(**{name: value})
        with pytest.raises(TypeError, match="'epsilonn'"):
            AdamW(epsilonn=1)

    def test_only_schedulers_that_go_by_base_lr_follow_the_learning_rate(self):
        """The docstring says so; Adam does the same."""
        for kind, expected in (("Factor", 0.2), ("MultiFactor", 0.2), ("Poly", 0.1), ("Cosine", 0.1)):
            for optimizer in (AdamW, mx.optimizer.Adam):
                steps = [100] if kind == "MultiFactor" else 100
                scheduler = getattr(mx.lr_scheduler, f"{kind}Scheduler")(steps, base_lr=0.1)
                optimizer(learning_rate=0.2, lr_scheduler=scheduler)
                assert scheduler(0) == expected, kind

    @pytest.mark.parametrize("name", ["beta1", "beta2"])
    def test_a_beta_that_float32_rounds_to_1_is_refused(self, name):
        with pytest.raises(ValueError, match=f"{name} of AdamW must be less than 1 in float32.*0.99999994"):
            AdamW(**{name: 1 - 1e-9})
        AdamW(**{name: 0.99999994})

    @pytest.mark.parametrize("name", ["beta1", "beta2", "epsilon", "wd"])
    @pytest.mark.parametrize("value", ["0.9", None, False])
    def test_what_is_no_number_is_refused(self, name, value):
        with pytest.raises(TypeError, match=f"{name} of AdamW must be a number, not {value!r} of type"):
            AdamW(**{name: value})

    def test_lazy_updates_are_refused(self):
        with pytest.raises(ValueError, match="AdamW has no lazy_update"):
            AdamW(lazy_update=True)
        assert not AdamW(lazy_update=False).lazy_update

    def test_float64_weights_decay_by_an_unrounded_factor(self):
        param = gluon.Parameter("p", shape=(50,), dtype="float64")
        param.initialize(mx.init.One())
        trainer = MultiLRTrainer(param, "adamw", {"learning_rate": 1e-6, "wd": 0.01})
        for _ in range(100):
            param.data()._fresh_grad = True  # the gradient is 0
            trainer.step(1)
        decay = 1 - param.data().asnumpy()
        assert decay == pytest.approx(1 - (1 - 1e-8) ** 100, rel=1e-6)

    def test_defaults_are_those_of_pytorch(self):
        optimizer = AdamW()
        found = optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.epsilon, optimizer.wd
        assert found == (0.001, 0.9, 0.999, 1e-8, 0.01)

    def test_a_scheduler_and_the_number_of_operators_that_mxnet_joins(self, monkeypatch):
        monkeypatch.setenv("MXNET_OPTIMIZER_AGGREGATION_SIZE", "4")
        scheduler = mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=0.1)
        optimizer = AdamW(learning_rate=0.1, lr_scheduler=scheduler, wd=0.5)
        assert optimizer.aggregate_num == 0
        updater, weight = mx.optimizer.get_updater(optimizer), mx.nd.ones(1)
        kept = 1.0
        for step in range(3):
            updater(0, mx.nd.zeros(1), weight)
            kept *= 1 - scheduler(step + 1) * 0.5
        assert weight.asscalar() == pytest.approx(kept, rel=BOUND)


class TestRegistration:
    def test_mxnet_makes_it_by_name(self):
        assert type(mx.optimizer.create("AdamW", wd=0.1)) is AdamW
        net = gluon.nn.Dense(1, in_units=1)
        net.initialize()
        assert type(gluon.Trainer(net.collect_params(), "adamw").optimizer) is AdamW

    def test_another_import_replaces_the_class_without_a_warning(self, monkeypatch):
        monkeypatch.setitem(Optimizer.opt_registry, "adamw", AdamW)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spec = importlib.util.find_spec(adamw.__name__)
            again = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(again)
        assert Optimizer.opt_registry["adamw"] is again.AdamW is not AdamW

    def test_one_that_the_user_registered_before_stays(self):
        done = run_python(
            """
            import warnings
            import multitrainer, mxnet, sys
            for name in [name for name in sys.modules if name.startswith("multitrainer")]:
                del sys.modules[name]
            import mxnet as mx
            mx.optimizer.Optimizer.opt_registry.pop("adamw")

            @mx.optimizer.register
            class AdamW(mx.optimizer.SGD):
                pass

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                import multitrainer
            assert type(mx.optimizer.create("adamw")) is AdamW is not multitrainer.AdamW
            print([str(each.message) for each in caught if "adamw" in str(each.message)])
            """
        )
        assert "stays __main__.AdamW" in done.stdout, done.stderr


class TestCopies:
    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
    def test_train_on_with_the_same_settings(self, how):
        optimizer = AdamW(learning_rate=0.1, wd=0.5, correct_bias=False)
        assert update_once(how(optimizer))[0] == update_once(optimizer)[0]

    def test_none_goes_to_parameter_servers(self):
        """MXNet pickles for them by protocol 0; a server could not import the class."""
        with pytest.raises(RuntimeError, match=r"cannot run on parameter servers.*update_on_kvstore=False"):
            pickle.dumps(AdamW(), 0)

    @pytest.mark.parametrize(
        "options", [{"kvstore": "dist_async"}, {"kvstore": "dist_sync", "update_on_kvstore": True}]
    )
    def test_a_step_is_refused_before_there_is_a_kvstore(self, options):
        """There is no scheduler in this test, which a kvstore would look for."""
        net = mlp()
        trainer = MultiLRTrainer(net, "adamw", **options)
        backward(net, *batches(1)[0])
        before = snapshot(net)
        with pytest.raises(RuntimeError, match="cannot run on parameter servers"):
            trainer.step(4)
        assert not moved(before, snapshot(net))
