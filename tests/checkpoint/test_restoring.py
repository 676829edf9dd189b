"""Stop anywhere, resume bit for bit: `load_states` restores everything that training depends on."""

import collections
import functools
import pickle
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet.contrib.amp.loss_scaler import LossScaler
from mxnet.gluon import Trainer, nn
from mxnet.optimizer import Optimizer

from checkpoint_support import SCHEDULERS, Run, replace_entry
from multitrainer import MultiLRTrainer, ParamGroup, unfreeze
from optimizer_zoo import Embedder, mark_fresh, skip_what_stock_cannot, variants
from support import CONTEXTS, batches, fingerprint, mlp, moved, same, snapshot, train, weights


def scheduled_variants():
    """Yield every optimizer and setting with one of the schedulers, and SGD with momentum with each of them."""
    names = list(SCHEDULERS)
    for i, variant in enumerate(variants()):
        every = variant.id == "sgd-momentum, wd"
        for scheduler in names if every else [names[i % len(names)]]:
            yield pytest.param(*variant.values, scheduler, id=f"{variant.id}-{scheduler}")


class TestResume:
    """Train 5 steps, save, train 4 equals load, train 4. Before, a layer is unfrozen and another one is frozen."""

    @pytest.mark.parametrize("hybridize", [False, True], ids=["", "hybridized"])
    @pytest.mark.parametrize(("name", "label", "params", "scheduler"), scheduled_variants())
    def test_every_optimizer(self, name, label, params, scheduler, hybridize, tmp_path):
        skip_what_stock_cannot(name, label)
        self.check(tmp_path, name, params, scheduler=scheduler, hybridize=hybridize)

    @pytest.mark.parametrize("update_on_kvstore", [True, False])
    @pytest.mark.parametrize("kvstore", ["local", "device"])
    @pytest.mark.parametrize(
        ("name", "params"),
        [("sgd", {"momentum": 0.9}), ("adam", {}), ("adamw", {"correct_bias": False}), ("ftml", {}), ("lbsgd", {})],
    )
    def test_two_contexts(self, name, params, kvstore, update_on_kvstore, tmp_path):
        params = {"learning_rate": 0.05, **params}
        self.check(tmp_path, name, params, ctx=CONTEXTS, kvstore=kvstore, update_on_kvstore=update_on_kvstore)

    def check(self, folder, name, params, **options):
        first = Run(name, params, **options)
        first.train(0, 3)
        first.trainer.set_lr_mult({first.net[0]: 1, first.net[1]: 0})
        first.train(3, 2)
        first.save(folder)
        then = first.train(5, 4)
        again = Run(name, params, **options).load(folder)
        assert same(then, again.train(5, 4))
        assert fingerprint(first.trainer, first.net) == fingerprint(again.trainer, again.net)
        assert any(key.startswith("net_dense0") for key in weights(moved(then[0], then[-1])))

    @pytest.mark.parametrize("spec", [lambda net: net, lambda net: [net, (net[0], 0)]], ids=["free", "frozen"])
    def test_updates_are_counted_as_before(self, spec, tmp_path):
        """After a freeze, updates are counted another way, and the scheduler of lbsgd depends on that."""
        first = Run("lbsgd", {}, scheduler="poly", spec=lambda net: net)
        first.train(0, 3)
        then = first.save(tmp_path).train(3, 3)
        assert same(then, Run("lbsgd", {}, scheduler="poly", spec=spec).load(tmp_path).train(3, 3))

    def test_into_a_trainer_that_trained_longer(self, tmp_path):
        run = Run("nadam", {"wd": 0.01}, scheduler="factor")
        run.train(0, 5)
        then = run.save(tmp_path).train(5, 3)
        assert same(then, run.load(tmp_path).train(5, 3))

    def test_before_the_first_step(self, tmp_path):
        first = Run("adam", {})
        first.save(tmp_path)
        assert same(first.train(0, 3), Run("adam", {}).load(tmp_path).train(0, 3))

    def test_gluoncv_chain_of_schedulers(self, tmp_path):
        utils = pytest.importorskip("gluoncv.utils.lr_scheduler")

        def build():
            parts = [utils.LRScheduler("linear", 0, 0.1, niters=3), utils.LRScheduler("cosine", 0.1, niters=9)]
            net = mlp()
            return net, MultiLRTrainer(net, "sgd", {"lr_scheduler": utils.LRSequential(parts)})

        net, trainer = build()
        train(net, trainer, batches(5))
        trainer.save_states(tmp_path / "states")
        other, fresh = build()
        fresh.load_states(tmp_path / "states")
        assert fingerprint(trainer, net)["scheduler"] == fingerprint(fresh, other)["scheduler"]
        assert [vars(part) for part in fresh.optimizer.lr_scheduler.schedulers] == [
            vars(part) for part in trainer.optimizer.lr_scheduler.schedulers
        ]


class TestKindsOfState:
    @pytest.mark.parametrize("name", ["sgd", "nag", "adam", "adamw", "lamb", "lbsgd", "signum", "ftml"])
    def test_half_precision_with_master_weights(self, name, tmp_path):
        def build():
            mx.random.seed(2)
            params = mx.gluon.ParameterDict()
            for key in ("a", "b"):
                params.get(key, shape=(3, 2), dtype="float16", init=mx.init.Uniform())
            params.initialize()
            momentum = {"momentum": 0.9} if name in ("sgd", "nag", "lbsgd", "signum") else {}
            return params, MultiLRTrainer(params, name, {"learning_rate": 0.1, "multi_precision": True, **momentum})

        def go(params, trainer, steps):
            for step in steps:
                for param in params.values():
                    param.grad()[:] = mx.nd.full((3, 2), 0.1 * (step + 1), dtype="float16")
                mark_fresh(params)
                trainer.step(1)

        params, trainer = build()
        go(params, trainer, range(3))
        params.save(str(tmp_path / "params"))
        trainer.save_states(tmp_path / "states")
        go(params, trainer, range(3, 6))
        others, fresh = build()
        others.load(str(tmp_path / "params"))
        fresh.load_states(tmp_path / "states")
        go(others, fresh, range(3, 6))
        assert not moved(snapshot(params), snapshot(others))
        assert fingerprint(trainer, params) == fingerprint(fresh, others)

    @pytest.mark.parametrize("name", ["sgd", "adam", "adagrad", "ftrl"])
    def test_row_sparse(self, name, tmp_path):
        """Weights on the kvstore, and steps that update some of their rows."""

        def build():
            params = mx.gluon.ParameterDict()
            params.get("sparse", shape=(6, 2), stype="row_sparse", grad_stype="row_sparse")
            params.initialize(mx.init.One())
            momentum = {"momentum": 0.9} if name == "sgd" else {}
            return params["sparse"], MultiLRTrainer(params, name, {"learning_rate": 0.1, **momentum})

        def go(param, trainer, steps):
            for rows in steps:
                with mx.autograd.record():
                    loss = mx.nd.Embedding(
                        mx.nd.array(rows), param.row_sparse_data(mx.nd.arange(6)), 6, 2, sparse_grad=True
                    ).sum()
                loss.backward()
                trainer.step(1)
            return param.row_sparse_data(mx.nd.arange(6)).asnumpy().tobytes()

        param, trainer = build()
        go(param, trainer, [[0, 1], [1, 3]])
        trainer.save_states(tmp_path / "states")
        weight = param.list_row_sparse_data(mx.nd.arange(6))[0]
        other, fresh = build()
        other.set_data(weight)
        fresh.load_states(tmp_path / "states")
        with np.load(tmp_path / "states") as file:
            assert {"sparse/data", "sparse/indices"} & set(file.files) or "sparse/0/data" in file.files
        assert go(param, trainer, [[3, 4], [0, 5]]) == go(other, fresh, [[3, 4], [0, 5]])

    def test_sparse_gradients(self, tmp_path):
        def go(net, trainer, rows):
            for row in rows:
                with mx.autograd.record():
                    loss = (net(mx.nd.array(row)) ** 2).sum()
                loss.backward()
                trainer.step(2)

        def build():
            net = Embedder()
            net.initialize()
            return net, MultiLRTrainer(net, "adam")

        net, trainer = build()
        go(net, trainer, [[[0, 1], [2, 2]], [[1, 3], [0, 0]]])
        net.save_parameters(str(tmp_path / "net"))
        trainer.save_states(tmp_path / "states")
        other, fresh = build()
        other.load_parameters(str(tmp_path / "net"))
        fresh.load_states(tmp_path / "states")
        for pair in ((net, trainer), (other, fresh)):
            go(*pair, [[[4, 1], [2, 0]]])
        assert fingerprint(trainer, net) == fingerprint(fresh, other)

    def test_user_written_optimizer_with_state_of_all_kinds(self, tmp_path):
        one, other = (Run("sgd", {}, spec=lambda net: net) for _ in range(2))
        for run in (one, other):
            run.trainer = MultiLRTrainer(run.net, Hoarder(learning_rate=0.1))
        one.train(0, 3)
        then = one.save(tmp_path).train(3, 3)
        assert same(then, other.load(tmp_path).train(3, 3))
        hoard, again = one.trainer.optimizer, other.trainer.optimizer
        assert isinstance(again.seen, collections.defaultdict)
        assert again.seen == hoard.seen
        assert again.lazily == hoard.lazily == 6
        assert type(again.single) is np.float32
        assert (again.limit, again.nested) == (float("inf"), hoard.nested)
        assert (again.average.asnumpy() == hoard.average.asnumpy()).all()


class Hoarder(Optimizer):
    """Has attributes and states of every kind."""

    State = collections.namedtuple("State", "momentum notes")

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = collections.defaultdict(int)
        self.sums = {}
        self.limit, self.single, self.average = float("inf"), np.float32(0.1), 0
        self.nested = {"a": [1, 2.5, (None, True)], 3: np.arange(3)[1]}

    def create_state(self, index, weight):
        return self.State(mx.nd.zeros(weight.shape, weight.context), {"log": [], "count": 0})

    def update(self, index, weight, grad, state):
        self._update_count(index)
        self.lazily = self._index_update_count[index]
        self.seen[index] += 1
        self.sums.setdefault(index, {})["norm"] = grad.norm()
        self.average = self.average + grad.norm()
        state.notes["count"] += 1
        state.notes["log"].append(grad.max())
        state.momentum[:] = 0.9 * state.momentum + grad * self.rescale_grad * state.notes["count"]
        noise = sum(note.asscalar() for note in state.notes["log"]) * float(self.single) * 1e-3
        weight[:] -= self._get_lr(index) * (state.momentum + noise + self.sums[index]["norm"] * 1e-3)


class TestContexts:
    @pytest.mark.parametrize("name", ["adam", "sgd"])
    @pytest.mark.parametrize("update_on_kvstore", [True, False])
    def test_saved_on_two_loaded_on_one(self, name, update_on_kvstore, tmp_path):
        params = {"learning_rate": 0.05, **({"momentum": 0.9} if name == "sgd" else {})}
        two = Run(name, params, ctx=CONTEXTS, update_on_kvstore=update_on_kvstore)
        two.train(0, 3)
        two.save(tmp_path)
        one = Run(name, params, ctx=CONTEXTS[:1]).load(tmp_path)
        here, there = fingerprint(one.trainer, one.net), fingerprint(two.trainer, two.net)
        assert here["states"] == there["states"]
        assert here["counts"] == there["counts"]
        one.train(3, 2)

    @pytest.mark.parametrize("update_on_kvstore", [True, False])
    def test_saved_on_one_loaded_on_two(self, update_on_kvstore, tmp_path):
        """Stock leaves the update count of the second at 0, so that adam's correction makes the weights differ."""
        one = Run("adam", {}, ctx=CONTEXTS[:1], spec=lambda net: net)
        one.train(0, 3)
        one.save(tmp_path)
        two = Run("adam", {}, ctx=CONTEXTS, update_on_kvstore=update_on_kvstore).load(tmp_path)
        two.train(3, 3)
        for param in two.net.collect_params().values():
            first, second = param.list_data()
            assert first.asnumpy().tobytes() == second.asnumpy().tobytes(), param.name
        assert set(fingerprint(two.trainer, two.net)["counts"].values()) == {6}

    @pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 0), (1, 1)])
    def test_another_device(self, one, other, tmp_path):
        """Each device has update counts of its own."""
        first = Run("adam", {}, ctx=[mx.cpu(one)])
        first.train(0, 3)
        then = first.save(tmp_path).train(3, 3)
        assert same(then, Run("adam", {}, ctx=[mx.cpu(other)]).load(tmp_path).train(3, 3))

    def test_the_weights_differ_under_stock(self, tmp_path):
        """Show that the test above can fail."""
        one = Run("adam", {}, spec=lambda net: net)
        one.train(0, 3)
        Trainer.save_states(one.trainer, str(tmp_path / "states"))
        net = mlp(CONTEXTS)
        stock = Trainer(net.collect_params(), "adam", update_on_kvstore=False)
        stock.load_states(str(tmp_path / "states"))
        train(net, stock, batches(2), CONTEXTS)
        first, second = net[0].weight.list_data()
        assert (first.asnumpy() != second.asnumpy()).any()


class TestByName:
    @pytest.mark.parametrize("name", ["sgd", "adam", "lbsgd"])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_in_another_order(self, name, backwards, tmp_path):
        params = {"learning_rate": 0.05, **({} if name == "adam" else {"momentum": 0.9})}

        def build(turned):
            return Run(name, params, spec=lambda net: list(net.collect_params().values())[:: -1 if turned else 1])

        one = build(backwards)
        one.trainer.set_lr_mult({one.net[0].bias: 0.25, one.net[2].weight: 0.5})
        one.train(0, 3)
        then = one.save(tmp_path).train(3, 3)
        other = build(not backwards).load(tmp_path)
        assert same(then, other.train(3, 3))
        assert fingerprint(one.trainer, one.net) == fingerprint(other.trainer, other.net)


class TestMultipliers:
    def test_frozen_and_unfrozen_whatever_the_groups_say(self, tmp_path):
        run = Run("sgd", {"momentum": 0.9})
        run.net[2].collect_params().setattr("grad_req", "add")
        run.trainer.set_lr_mult({run.net[0]: 0.25, run.net[1]: 0, run.net[2]: 0})
        run.save(tmp_path)
        fresh = Run("sgd", {"momentum": 0.9}, spec=lambda net: [net, (net[0], 0), (net[2], 3)], hybridize=True)
        x = batches(1)[0][0]
        with mx.autograd.record():
            fresh.net(x)
        fresh.load(tmp_path)
        assert [layer.lr_mult for layer in (fresh.net[0].weight, fresh.net[1].gamma, fresh.net[2].bias)] == [0.25, 0, 0]
        assert (fresh.net[0].weight.grad_req, fresh.net[2].bias.grad_req) == ("write", "null")
        with mx.autograd.record():
            recorded = fresh.net(x)
        assert recorded.asnumpy() == pytest.approx(fresh.net(x).asnumpy(), abs=1e-6)  # on its running statistics
        unfreeze(fresh.net[2])
        assert (fresh.net[2].bias.grad_req, fresh.net[2].bias.lr_mult) == ("add", 1)

    def test_a_gradient_that_the_user_switched_off_stays_off(self, tmp_path):
        def build():
            run = Run("sgd", {}, spec=lambda net: net)
            run.net[0].collect_params().setattr("grad_req", "null")
            return run

        run = build()
        run.train(0, 2)
        run.save(tmp_path)
        other = build().load(tmp_path)
        assert (other.net[0].weight.grad_req, other.net[0].weight.lr_mult) == ("null", 1)

    def test_multipliers_assigned_since_the_last_step_are_saved(self, tmp_path):
        run = Run("sgd", {"wd": 0.01}, spec=lambda net: net)
        run.train(0, 1)
        run.net[1].collect_params().setattr("lr_mult", 0)
        run.net[0].weight.wd_mult = 7
        then = run.save(tmp_path).train(1, 2)
        fresh = Run("sgd", {"wd": 0.01}, spec=lambda net: net).load(tmp_path)
        assert (fresh.net[1].gamma.grad_req, fresh.net[0].weight.wd_mult) == ("null", 7)
        assert same(then, fresh.train(1, 2))

    def test_schedules_continue_from_the_update_of_the_file(self, tmp_path):
        def spec(net):
            return [
                net,
                (net[0], lambda t: 0 if t < 4 else 1 / t),
                ParamGroup(net[2], lr_mult=lambda t: 1 if t < 3 else 0, wd_mult=lambda t: t),
            ]

        run = Run("sgd", {"wd": 0.01, "momentum": 0.9}, scheduler="factor", spec=spec)
        run.train(0, 5)
        then = run.save(tmp_path).train(5, 4)
        fresh = Run("sgd", {"wd": 0.01, "momentum": 0.9}, scheduler="factor", spec=spec).load(tmp_path)
        assert (fresh.net[0].weight.lr_mult, fresh.net[2].weight.lr_mult) == (1 / 6, 0)
        assert same(then, fresh.train(5, 4))

    def test_a_schedule_that_was_ended_stays_ended(self, tmp_path):
        run = Run("sgd", {}, spec=lambda net: [net, (net[0], lambda t: 1 / t), (net[2], lambda t: 0)])
        run.train(0, 1)
        run.trainer.set_lr_mult({run.net[0]: 0})
        run.net[2].weight.lr_mult = 0.5
        run.save(tmp_path)
        for _ in range(2):  # the second time, from what a resumed trainer saved
            fresh = Run("sgd", {}, spec=lambda net: [net, (net[0], lambda t: 1 / t), (net[2], lambda t: 0)])
            fresh.load(tmp_path).train(1, 2)
            assert (fresh.net[0].weight.lr_mult, fresh.net[2].weight.lr_mult, fresh.net[2].bias.lr_mult) == (0, 0.5, 0)
            fresh.save(tmp_path)

    def test_a_new_schedule_acts(self, tmp_path):
        run = Run("sgd", {}, spec=lambda net: net)
        run.train(0, 3)
        run.save(tmp_path)
        fresh = Run("sgd", {}, spec=lambda net: [net, (net[0], lambda t: t)]).load(tmp_path)
        assert fresh.net[0].weight.lr_mult == 4

    def test_a_schedule_that_is_missing_is_named(self, tmp_path):
        Run("sgd", {}, spec=lambda net: [net, (net[0], lambda t: 1 / t)]).save(tmp_path)
        fresh = Run("sgd", {}, spec=lambda net: [net, (net[0], 3)])
        before = fingerprint(fresh.trainer, fresh.net)
        with pytest.raises(
            ValueError, match=r"lr_mult of net_dense0_bias, net_dense0_weight went by a schedule.*keep="
        ):
            fresh.load(tmp_path)
        assert fingerprint(fresh.trainer, fresh.net) == before
        fresh.load(tmp_path, keep="lr_mult")
        assert fresh.net[0].weight.lr_mult == 3

    def test_a_schedule_that_fails_changes_nothing(self, tmp_path):
        run = Run("sgd", {"momentum": 0.9}, spec=lambda net: net)
        run.train(0, 3)
        run.save(tmp_path)
        fresh = Run("sgd", {"momentum": 0.9}, spec=lambda net: [net, (net[0], lambda t: {1: 1}[t])])
        before = fingerprint(fresh.trainer, fresh.net)
        with pytest.raises(RuntimeError, match=r"schedule at update 4, cannot be evaluated: KeyError\(4\)"):
            fresh.trainer.load_states(tmp_path / "states")
        assert fingerprint(fresh.trainer, fresh.net) == before


class TestSettings:
    def saved(self, folder, name="sgd", params=None, **options):
        run = Run(name, params or {"learning_rate": 0.3, "momentum": 0.9, "wd": 0.01}, **options)
        run.train(0, 3)
        return run.save(folder)

    def test_the_learning_rate_of_the_file_wins_as_in_stock(self, tmp_path):
        self.saved(tmp_path)
        fresh = Run("sgd", {"learning_rate": 0.7})
        fresh.trainer.load_states(tmp_path / "states")
        assert (fresh.trainer.learning_rate, fresh.trainer.optimizer.momentum, fresh.trainer.optimizer.wd) == (
            0.3,
            0.9,
            0.01,
        )
        fresh.train(3, 2)

    @pytest.mark.parametrize(
        ("keep", "expected"),
        [
            ("learning_rate", (0.7, 0.9, 0.01)),
            (("wd", "learning_rate"), (0.7, 0.9, 0.5)),
            (["lr_mult", "wd"], (0.3, 0.9, 0.5)),
        ],
        ids=str,
    )
    def test_keep(self, keep, expected, tmp_path):
        self.saved(tmp_path)
        fresh = Run("sgd", {"learning_rate": 0.7, "wd": 0.5, "momentum": 0.9}, spec=lambda net: [net, (net[0], 2)])
        fresh.trainer.load_states(tmp_path / "states", keep=keep)
        optimizer = fresh.trainer.optimizer
        assert (optimizer.lr, optimizer.momentum, optimizer.wd) == expected
        assert fresh.net[0].weight.lr_mult == (2 if "lr_mult" in keep else 0)
        fresh.train(3, 1)

    def test_keep_an_unknown_name(self, tmp_path):
        self.saved(tmp_path)
        fresh = Run("sgd", {})
        with pytest.raises(
            ValueError, match=r"keep: 'lerning_rate' cannot be kept; choose from learning_rate, lr_mult"
        ):
            fresh.trainer.load_states(tmp_path / "states", keep="lerning_rate")

    def test_keep_a_momentum_that_does_not_fit_the_states(self, tmp_path):
        self.saved(tmp_path)
        fresh = Run("sgd", {})
        before = fingerprint(fresh.trainer, fresh.net)
        with pytest.raises(ValueError, match="but the optimizer of this trainer keeps NoneType None"):
            fresh.trainer.load_states(tmp_path / "states", keep="momentum")
        assert fingerprint(fresh.trainer, fresh.net) == before

    def test_keep_another_scheduler(self, tmp_path):
        self.saved(tmp_path, scheduler="factor")
        fresh = Run("sgd", {"momentum": 0.9}, scheduler="cosine")
        with pytest.raises(ValueError, match="class 'FactorScheduler' in the file"):
            fresh.trainer.load_states(tmp_path / "states")
        fresh.trainer.load_states(tmp_path / "states", keep="learning_rate")
        assert fresh.trainer.learning_rate == SCHEDULERS["cosine"]()(3)

    @pytest.mark.parametrize(("one", "other"), [("factor", None), (None, "factor")])
    def test_a_scheduler_on_one_side_only(self, one, other, tmp_path):
        self.saved(tmp_path, scheduler=one)
        fresh = Run("sgd", {"momentum": 0.9}, scheduler=other)
        with pytest.raises(ValueError, match=r"was saved with(out)? an lr_scheduler.*keep='learning_rate'"):
            fresh.trainer.load_states(tmp_path / "states")
        fresh.trainer.load_states(tmp_path / "states", keep="learning_rate")

    def test_a_function_as_scheduler(self, tmp_path):
        def build():
            net = mlp()
            optimizer = mx.optimizer.SGD(momentum=0.9)
            optimizer.lr_scheduler = lambda num_update: 0.1 / num_update
            return net, MultiLRTrainer(net, optimizer)

        net, trainer = build()
        train(net, trainer, batches(2))
        trainer.save_states(tmp_path / "states")
        net.save_parameters(str(tmp_path / "net"))
        other, fresh = build()
        fresh.load_states(tmp_path / "states")
        other.load_parameters(str(tmp_path / "net"))
        fresh.load_states(tmp_path / "states")
        assert same(train(net, trainer, batches(2)), train(other, fresh, batches(2)))

    def test_another_optimizer(self, tmp_path):
        self.saved(tmp_path)
        with pytest.raises(ValueError, match="holds states of SGD, but the optimizer of this trainer is Adam"):
            Run("adam", {}).trainer.load_states(tmp_path / "states")

    def test_amp(self, tmp_path):
        """The loss scale is restored; without AMP, a file that has one is refused, not loaded without it."""

        def build(amp):
            run = Run("sgd", {})
            if amp:
                run.trainer._amp_loss_scaler = LossScaler()
            return run

        run = build(True)
        run.trainer._amp_loss_scaler._loss_scale = 2.0**128
        run.trainer._amp_loss_scaler._unskipped = 17
        run.save(tmp_path)
        fresh = build(True).load(tmp_path)
        assert vars(fresh.trainer._amp_loss_scaler) == vars(run.trainer._amp_loss_scaler)
        without = build(False)
        with pytest.raises(ValueError, match=r"saved under AMP.*init_trainer\(trainer\) before.*keep='loss_scale'"):
            without.load(tmp_path)
        without.load(tmp_path, keep="loss_scale")
        build(False).save(tmp_path)
        build(True).load(tmp_path)

    def test_attribute_of_another_version_of_the_class(self, tmp_path):
        self.saved(tmp_path)
        fresh = Run("sgd", {})
        fresh.trainer.optimizer.newer = 3
        with pytest.raises(ValueError, match="the file has no 'newer' of SGD"):
            fresh.trainer.load_states(tmp_path / "states")
        fresh.trainer.load_states(tmp_path / "states", keep="newer")


class TestStockFiles:
    def test_stock_files_need_allow_pickle(self, tmp_path):
        stock = mlp()
        trainer = Trainer(stock.collect_params(), "sgd", {"learning_rate": 0.3, "momentum": 0.9})
        train(stock, trainer, batches(3))
        trainer.save_states(str(tmp_path / "states"))
        run = Run("sgd", {"momentum": 0.9}, spec=lambda net: [net, (net[0], 0.5)])
        before = fingerprint(run.trainer, run.net)
        with pytest.raises(ValueError, match=r"looks like a pickle, as gluon.Trainer writes it.*allow_pickle=True"):
            run.trainer.load_states(tmp_path / "states")
        assert fingerprint(run.trainer, run.net) == before
        with pytest.raises(ValueError, match="has no names"):
            run.trainer.load_states(tmp_path / "states", allow_pickle=True, keep="learning_rate")
        run.trainer.load_states(tmp_path / "states", allow_pickle=True)
        assert (run.trainer.learning_rate, run.net[0].weight.lr_mult) == (0.3, 0.5)
        assert run.trainer.optimizer.num_update == 3

    def test_our_files_are_never_unpickled(self, tmp_path, monkeypatch):
        run = Run("adam", {})
        run.train(0, 2)
        then = run.save(tmp_path).train(2, 2)
        monkeypatch.setattr(pickle, "loads", None)
        assert same(then, Run("adam", {}).load(tmp_path, allow_pickle=True).train(2, 2))


def test_parameters_without_values(tmp_path):
    net = nn.HybridSequential(prefix="late_")
    with net.name_scope():
        net.add(nn.Dense(2), nn.Dense(1))
    net.initialize()
    trainer = MultiLRTrainer(net, "sgd")
    for call in (trainer.save_states, trainer.load_states):
        with pytest.raises(RuntimeError, match=r"no values yet: late_dense0_weight.*one forward pass"):
            call(tmp_path / "states")
    net(mx.nd.ones((1, 3)))
    trainer.save_states(tmp_path / "states")
    trainer.load_states(tmp_path / "states")


def test_no_file(tmp_path):
    run = Run("sgd", {})
    with pytest.raises(FileNotFoundError):
        run.trainer.load_states(tmp_path / "states")
    with pytest.raises(OSError, match="gone"):
        run.trainer.save_states(tmp_path / "gone" / "states")
    with pytest.raises(OSError, match="not a regular file"):
        run.trainer.save_states(tmp_path)


def test_a_symbolic_link_stays_a_link(tmp_path):
    run = Run("sgd", {})
    (tmp_path / "latest").symlink_to(tmp_path / "states")
    run.trainer.save_states(str(tmp_path / "latest"))
    assert (tmp_path / "latest").is_symlink()
    run.trainer.load_states(str(tmp_path / "states"))


class TestChecks:
    """What is checked in a file before the trainer changes."""

    @pytest.fixture
    def saved(self, tmp_path):
        run = Run("sgd", {"momentum": 0.9}, scheduler="factor")
        run.train(0, 2)
        run.trainer._amp_loss_scaler = LossScaler()
        run.save(tmp_path)
        return run, tmp_path / "states", tmp_path / "changed"

    def refused(self, run, path, reason, **options):
        before = fingerprint(run.trainer, run.net), dict(vars(run.trainer.optimizer.lr_scheduler))
        with pytest.raises(ValueError, match=reason):
            run.trainer.load_states(path, **options)
        assert (fingerprint(run.trainer, run.net), dict(vars(run.trainer.optimizer.lr_scheduler))) == before

    def test_a_member_that_the_header_does_not_mention(self, saved):
        run, path, changed = saved
        with np.load(str(path)) as file, open(str(changed), "wb") as again:
            np.savez(again, **file, more=np.ones(2))
        self.refused(run, changed, "is damaged.*it holds 'more'")

    def test_a_scheduler_that_would_take_too_long(self, saved):
        run, path, changed = saved
        replace_entry(path, changed, ["num_update"], 10**9)
        reason = "FactorScheduler with step=3 needs more than 4,000,000 iterations"
        self.refused(run, changed, reason)
        self.refused(run, changed, reason, keep="learning_rate")

    def test_a_loss_scale_that_is_not_valid(self, saved):
        run, path, changed = saved
        replace_entry(path, changed, ["loss_scaler", "_loss_scale"], -1.0)
        self.refused(run, changed, "is damaged.*_loss_scale of AMP's loss scaler is -1.0")
        run.trainer.load_states(changed, keep="loss_scale")

    def test_a_missing_attribute_of_the_loss_scaler(self, saved):
        run, path, changed = saved
        replace_entry(path, changed, ["loss_scaler"], {})
        self.refused(run, changed, "the file has no '_.*' of LossScaler")

    def test_nesting_that_is_too_deep(self, saved):
        run, path, changed = saved
        node = functools.reduce(lambda inner, _: [inner], range(400), 0)
        replace_entry(path, changed, ["optimizer", "attributes", "thing"], node)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(600)
        try:
            self.refused(run, changed, "is damaged.*recursion")
        finally:
            sys.setrecursionlimit(limit)

    @pytest.mark.parametrize(
        ("name", "value"), [("grad_req", "no"), ("schedules", {"lr_mult": "?"}), ("schedules", {"lr": "acts"})]
    )
    def test_a_record_of_unknown_words(self, name, value, saved):
        run, path, changed = saved
        replace_entry(path, changed, ["parameters", "net_dense1_weight", name], value)
        self.refused(run, changed, f"is damaged.*the {name} of 'net_dense1_weight'")

    def test_a_record_that_says_frozen_and_a_multiplier_above_0(self, saved):
        run, path, changed = saved
        for frozen, lr_mult in ((True, 0.5), (False, 0)):
            replace_entry(path, path, ["parameters", "net_dense1_weight", "frozen"], frozen)
            replace_entry(path, changed, ["parameters", "net_dense1_weight", "lr_mult"], lr_mult)
            self.refused(run, changed, f"'net_dense1_weight' is frozen and has an lr_mult of {lr_mult}, or neither")

    def test_a_negative_multiplier_that_the_parameter_had_before_it_was_frozen(self, tmp_path):
        """It comes back at the unfreeze, so a file of this trainer can be loaded into the same trainer only."""
        nets = [mlp(), mlp()]
        nets[0][0].weight.lr_mult = -2.0
        trainers = [MultiLRTrainer(net, "sgd") for net in nets]
        trainers[0].set_lr_mult({nets[0][0]: 0})
        trainers[0].save_states(tmp_path / "states")
        trainers[0].load_states(tmp_path / "states")
        with pytest.raises(ValueError, match=r"the before of 'net_dense0_weight' is -2\.0"):
            trainers[1].load_states(tmp_path / "states")


def test_counts_of_parameters_that_are_left_out_stay(tmp_path):
    whole = Run("adam", {}, spec=lambda net: net)
    whole.train(0, 4)
    part = Run("adam", {}, spec=lambda net: net[2])
    part.train(0, 1)
    part.trainer.save_states(tmp_path / "states")
    whole.trainer.load_states(tmp_path / "states", partial=True)
    counts = fingerprint(whole.trainer, whole.net)["counts"]
    assert counts["net_dense0_weight"] == 4
    assert counts["net_dense1_weight"] == 1
    assert whole.trainer.optimizer.num_update == 1


def test_loading_before_the_first_step_leaves_no_counts(tmp_path):
    fresh, run = Run("adam", {}, spec=lambda net: net), Run("adam", {}, spec=lambda net: net)
    fresh.save(tmp_path)
    run.train(0, 2)
    run.load(tmp_path)
    assert not fingerprint(run.trainer, run.net)["counts"]
    assert not run.trainer._updaters[0].states


def test_a_parameter_of_another_shape_keeps_its_multipliers(tmp_path):
    net, other = nn.Dense(3, in_units=2, prefix="fc_"), nn.Dense(3, in_units=4, prefix="fc_")
    for each in (net, other):
        each.initialize()
    MultiLRTrainer([(net, 0.25)], "sgd").save_states(tmp_path / "states")
    MultiLRTrainer([(other, 7)], "sgd").load_states(tmp_path / "states", partial=True)
    assert (other.bias.lr_mult, other.weight.lr_mult) == (0.25, 7)


def test_counts_of_indices_without_a_parameter_are_dropped(tmp_path):
    run = Run("sgd", {}, spec=lambda net: net)
    run.train(0, 1)
    run.save(tmp_path)
    expected = fingerprint(run.trainer, run.net)["counts"]
    run.trainer.optimizer._index_update_count[len(run.trainer._params)] = 3
    run.load(tmp_path)
    assert fingerprint(run.trainer, run.net)["counts"] == expected
