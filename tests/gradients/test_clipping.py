"""`max_grad_norm` scales all gradients of an update down to it, as clipping them by hand under stock does."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.contrib.amp.loss_scaler import LossScaler
from mxnet.gluon import Trainer, nn

from fused_support import require_kernels
from gradients_support import STORES, contexts, gradients, network, norm
from multitrainer import MultiLRTrainer
from multitrainer.fused import update
from multitrainer.gradients.clipping import GradientClipping, clip_coefficient, scaled_gradients
from optimizer_zoo import Embedder, skip_what_stock_cannot, variants
from optimizer_zoo import network as zoo_network
from support import CONTEXTS, backward, batches, bits, close, fingerprint, moved, same, snapshot, train

MAX_NORM = 0.05  # below the norms of these gradients


def clip_by_hand(net, batch_size, max_norm=MAX_NORM):
    """Scale the gradients themselves, for their mean over the batch to have at most a norm; return what it was."""
    found = norm(gradients(net).values()) / batch_size
    for param in net.collect_params().values():
        if param.grad_req != "null":
            for grad in param.list_grad():
                grad *= min(1, max_norm / (found + 1e-6))
    return found


def train_by_hand(net, trainer, data, max_norm=MAX_NORM):
    norms = []

    def step(batch_size):
        norms.append(clip_by_hand(net, batch_size, max_norm))
        trainer.step(batch_size)

    return train(net, trainer, data, step=step), norms


def all_close(ours, expected, tolerance=1e-5):
    return all(
        close(one[name], two[name], tolerance) or np.abs(one[name] - two[name]).max() < 1e-7
        for one, two in zip(ours, expected)
        for name in two
    )


class TestValue:
    @pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), -0.0])
    def test_that_is_no_finite_number_above_0(self, value):
        with pytest.raises(ValueError, match=f"max_grad_norm is {value!r}: expected a finite number above 0, or None"):
            GradientClipping(value)

    @pytest.mark.parametrize("value", ["1", True, [1], {}, 1j, mx.nd.ones(1)])
    def test_that_is_no_number(self, value):
        with pytest.raises(TypeError, match=r"(?s)max_grad_norm is .*: expected a finite number above 0, or None"):
            GradientClipping(value)

    @pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
    def test_that_is_a_number(self, value):
        trainer = MultiLRTrainer(network(), "sgd", max_grad_norm=value)
        assert bits(trainer.max_grad_norm) == bits(float(value))

    def test_a_wrong_one_changes_nothing(self):
        net = network()
        stock = Trainer(net.collect_params(), "sgd")
        optimizer = mx.optimizer.SGD()
        with pytest.raises(ValueError, match="max_grad_norm is -1"):
            MultiLRTrainer([(net, 0.5)], optimizer, max_grad_norm=-1)
        assert net[0].weight._trainer is stock
        assert net[0].weight.lr_mult == 1
        assert not optimizer.param_dict
        trainer = MultiLRTrainer(net, "sgd", max_grad_norm=2)
        with pytest.raises(ValueError, match="max_grad_norm is 0"):
            trainer.max_grad_norm = 0
        assert trainer.max_grad_norm == 2

    def test_can_be_set_and_taken_away(self):
        net, twin = network(), network()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
        data = batches(3)
        ours = train(net, trainer, data[:1])
        trainer.max_grad_norm = MAX_NORM
        ours += train(net, trainer, data[1:2])
        trainer.max_grad_norm = None
        ours += train(net, trainer, data[2:])
        stock = Trainer(twin.collect_params(), "sgd", {"learning_rate": 0.1})
        expected = train(twin, stock, data[:1])
        expected += train_by_hand(twin, stock, data[1:2])[0]
        expected += train(twin, stock, data[2:])
        assert same(ours[:1], expected[:1])
        assert all_close(ours, expected)


class TestCoefficient:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_of_a_norm_that_is_no_number(self, value):
        assert clip_coefficient(value, 1) == 1

    def test_is_never_above_1(self):
        assert clip_coefficient(0, 1) == clip_coefficient(1 - 1e-6, 1) == 1
        assert clip_coefficient(1, 1) == 1 / (1 + 1e-6)

    def test_scales_every_optimizer_and_puts_it_back(self):
        optimizers = [mx.optimizer.SGD(rescale_grad=0.5), mx.optimizer.Adam(rescale_grad=0.25)]

        def update():
            with scaled_gradients(optimizers, 0.5):
                assert [each.rescale_grad for each in optimizers] == [0.25, 0.125]
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            update()
        assert [each.rescale_grad for each in optimizers] == [0.5, 0.25]


class TestTrajectory:
    @pytest.mark.parametrize(("name", "label", "params"), variants())
    def test_is_that_of_gradients_clipped_by_hand(self, name, label, params):
        """Every optimizer multiplies the gradients with what the trainer tells it."""
        skip_what_stock_cannot(name, label)
        if name == "lbsgd":
            params = {**params, "warmup_epochs": 1, "updates_per_epoch": 1}
        net, twin = zoo_network(name), zoo_network(name)
        mx.random.seed(1)
        ours = train(net, MultiLRTrainer(net, name, dict(params), max_grad_norm=0.01), batches())
        mx.random.seed(1)
        expected, norms = train_by_hand(twin, Trainer(twin.collect_params(), name, dict(params)), batches(), 0.01)
        assert min(norms) > 0.01
        assert all_close(ours, expected, 1e-4)

    @pytest.mark.parametrize("store", STORES)
    @pytest.mark.parametrize("name", ["sgd", "adam"])
    def test_is_the_same_bit_for_bit_if_no_norm_is_too_large(self, name, store):
        net, twin = network(store), network(store)
        stores = store or {}
        ours = train(net, MultiLRTrainer(net, name, max_grad_norm=1e6, **stores), batches(), contexts(store))
        stock = train(twin, Trainer(twin.collect_params(), name, **stores), batches(), contexts(store))
        assert same(ours, stock)

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    def test_with_layers_that_freeze_and_a_schedule(self, hybridize):
        """What is frozen does not count."""
        data = batches(6)
        settings = {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.01}
        net, twin = network(), network()
        if hybridize is not None:
            net.hybridize(**hybridize)
        spec = [net, (net[1], lambda num_update: 1 / num_update)]
        trainer = MultiLRTrainer(spec, "sgd", settings, max_grad_norm=MAX_NORM)
        stock = Trainer(twin.collect_params(), "sgd", settings)
        ours, expected = [], []
        for i, batch in enumerate(data):
            if i in (2, 4):
                trainer.set_lr_mult({net[0]: 0 if i == 2 else 1})
                twin[0].collect_params().setattr("grad_req", "null" if i == 2 else "write")
            twin[1].collect_params().setattr("lr_mult", 1 / (i + 1))
            ours += train(net, trainer, [batch])
            expected += train_by_hand(twin, stock, [batch])[0]
        assert all_close(ours, expected)

    def test_the_optimizers_own_clipping_comes_afterwards(self):
        settings = {"learning_rate": 0.1, "clip_gradient": 0.01}
        net, twin = network(), network()
        ours = train(net, MultiLRTrainer(net, "sgd", settings, max_grad_norm=MAX_NORM), batches())
        expected, _ = train_by_hand(twin, Trainer(twin.collect_params(), "sgd", settings), batches())
        assert all_close(ours, expected)
        net = network()
        only_one = train(net, MultiLRTrainer(net, "sgd", settings), batches())
        assert not all_close(only_one, expected)

    def test_an_exchange_apart_from_the_update(self):
        store = {"update_on_kvstore": False}

        def history(in_one):
            net = network(store)
            trainer = MultiLRTrainer(net, "sgd", max_grad_norm=MAX_NORM, **store)

            def step(batch_size):
                trainer.allreduce_grads()
                trainer.update(batch_size)

            return train(net, trainer, batches(), CONTEXTS, None if in_one else step)

        assert same(history(True), history(False))

    @pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
    def test_the_fused_update_gives_the_same_bits(self, name, monkeypatch):
        require_kernels()

        def history(fast):
            monkeypatch.setenv(update.ENVIRONMENT_SWITCH, fast)
            net = network()
            trainer = MultiLRTrainer([net, (net[0], 0.3)], name, {"wd": 0.01}, max_grad_norm=MAX_NORM)
            found = train(net, trainer, batches())
            assert trainer.total_grad_norm() > MAX_NORM
            fused = any(each._prepared and each._prepared.operation for each in trainer._fused._updates)
            return found, fused

        fused, plain = history("1"), history("0")
        assert (fused[1], plain[1]) == (True, False)
        assert same(fused[0], plain[0])

    def test_resumed_it_is_the_same_bit_for_bit(self, tmp_path):
        data, settings = batches(4), {"learning_rate": 0.1, "momentum": 0.9}
        net = network()
        trainer = MultiLRTrainer(net, "sgd", settings, max_grad_norm=MAX_NORM)
        train(net, trainer, data[:2])
        net.save_parameters(str(tmp_path / "net"))
        trainer.save_states(tmp_path / "states")
        expected = train(net, trainer, data[2:])
        twin = network()
        twin.load_parameters(str(tmp_path / "net"))
        fresh = MultiLRTrainer(twin, "sgd", settings, max_grad_norm=MAX_NORM)
        fresh.load_states(tmp_path / "states")
        assert same(train(twin, fresh, data[2:]), expected)

    def test_leaves_the_checkpoint_as_it_is(self, tmp_path):
        for name, max_grad_norm in (("with", 1e6), ("without", None)):
            net = network()
            trainer = MultiLRTrainer(net, "sgd", max_grad_norm=max_grad_norm)
            train(net, trainer, batches(2))
            trainer.save_states(tmp_path / name)
        assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()

    def test_gradients_and_optimizer_stay_as_they_are(self):
        net = network()
        trainer = MultiLRTrainer(net, "sgd", max_grad_norm=MAX_NORM)
        backward(net, *batches(1)[0])
        before = bits([param.grad() for param in net.collect_params().values()])
        trainer.step(4)
        assert bits([param.grad() for param in net.collect_params().values()]) == before
        assert trainer.optimizer.rescale_grad == 1 / 4

    def test_an_error_in_the_update_puts_the_optimizer_back(self):
        class Failing(mx.optimizer.SGD):
            def update(self, *args):
                raise ArithmeticError

            update_multi_precision = update

        net = network()
        trainer = MultiLRTrainer(net, Failing(), max_grad_norm=MAX_NORM)
        backward(net, *batches(1)[0])
        with pytest.raises(ArithmeticError):
            trainer.step(4)
        assert trainer.optimizer.rescale_grad == 1 / 4

    def test_torch_clips_alike(self):
        """The same gradients under ``torch.nn.utils.clip_grad_norm_`` and SGD, for 20 steps."""
        torch = pytest.importorskip("torch", reason="the extra `bench` has PyTorch")
        shapes, values = [(5, 3), (5,), (64, 130)], np.random.RandomState(3)
        params = gluon.ParameterDict()
        for i, shape in enumerate(shapes):
            params.get(f"p{i}", shape=shape).initialize(mx.init.One())
        tensors = [torch.ones(shape, requires_grad=True) for shape in shapes]
        settings = {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.01}
        trainer = MultiLRTrainer(params, "sgd", settings, max_grad_norm=1)
        theirs = torch.optim.SGD(tensors, lr=0.1, momentum=0.9, weight_decay=0.01)
        for step in range(20):
            for param, tensor in zip(params.values(), tensors):
                gradient = (10.0 ** (step % 5 - 3) * values.randn(*param.shape)).astype(np.float32)
                param.grad()[:] = gradient
                param.data()._fresh_grad = True
                tensor.grad = torch.tensor(gradient.tolist())
            trainer.step(1)
            found = torch.nn.utils.clip_grad_norm_(tensors, 1)
            theirs.step()
            assert trainer.total_grad_norm() == pytest.approx(float(found), rel=1e-6)
        for param, tensor in zip(params.values(), tensors):
            expected = np.array(tensor.detach().tolist())
            assert np.abs(param.data().asnumpy() - expected).max() <= 1e-6 * np.abs(expected).max()


class TestNotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_the_update_is_what_it_is_without_clipping(self, value):
        def one(max_grad_norm):
            net = network()
            trainer = MultiLRTrainer(net, "sgd", max_grad_norm=max_grad_norm)
            backward(net, *batches(1)[0])
            net[0].weight.grad()[0, 0] = value
            trainer.step(4)
            return trainer, snapshot(net)

        (trainer, clipped), (_, plain) = one(MAX_NORM), one(None)
        assert not moved(clipped, plain)
        assert not np.isfinite(trainer.total_grad_norm())
        assert not np.isfinite(plain["net_dense0_weight"]).all()

    def test_amp_skips_it_and_the_norm_says_so(self):
        net = network()
        trainer = MultiLRTrainer(net, "sgd", max_grad_norm=MAX_NORM)
        trainer._amp_loss_scaler = LossScaler()
        backward(net, *batches(1)[0])
        net[0].weight.grad()[0, 0] = np.inf
        before = snapshot(net)
        trainer.step(4)
        assert not moved(before, snapshot(net))
        assert trainer.total_grad_norm() == np.inf
        train(net, trainer, batches(1))
        assert moved(before, snapshot(net)) == set(before)
        assert np.isfinite(trainer.total_grad_norm())

    def test_large_and_small_norms(self):
        """Squares that float32 cannot hold."""
        for size in (1e-25, 1e25):
            net = nn.Dense(2, in_units=2, use_bias=False)
            net.initialize(mx.init.Zero())
            trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 1}, max_grad_norm=1)
            net.weight.grad()[:] = size
            net.weight.data()._fresh_grad = True
            trainer.step(1)
            assert trainer.total_grad_norm() == pytest.approx(2 * size, rel=1e-6)
            assert net.weight.data().asnumpy() == pytest.approx(-np.full((2, 2), min(size, 0.5)), rel=1e-5)

    @pytest.mark.parametrize("name", ["sgd", "adam"])
    def test_a_factor_that_float32_cannot_hold_is_0(self, name):
        net = nn.Dense(2, in_units=2, use_bias=False)
        net.initialize(mx.init.One())
        trainer = MultiLRTrainer(net, name, {"learning_rate": 1}, max_grad_norm=1)
        net.weight.grad()[:] = 3e38
        net.weight.data()._fresh_grad = True
        trainer.step(1)
        assert (net.weight.data().asnumpy() == 1).all()
        assert trainer.total_grad_norm() == pytest.approx(6e38)
        assert trainer.optimizer.rescale_grad == 1


class TestScaledLoss:
    def test_the_norm_is_that_of_unscaled_gradients(self):
        """AMP multiplies the loss, and divides ``_scale`` by the same (`mxnet.contrib.amp.scale_loss`)."""

        def history(scale):
            net = network()
            trainer = MultiLRTrainer(net, "sgd", max_grad_norm=MAX_NORM)
            if scale != 1:
                trainer._amp_loss_scaler = LossScaler()
            found = []
            for x, y in batches():
                with mx.autograd.record():
                    loss = scale * gluon.loss.L2Loss()(net(x), y)
                trainer._scale = 1 / scale
                loss.backward()
                trainer.step(len(x))
                found.append((trainer.total_grad_norm(), snapshot(net)))
            return found

        for (one, arrays), (two, expected) in zip(history(1024), history(1)):
            assert one == pytest.approx(two, rel=1e-6)
            assert all_close([arrays], [expected])


class TestWhoUpdates:
    @pytest.mark.parametrize("store", STORES[1:])
    def test_two_contexts_train_as_one(self, store):
        def history(store):
            net = network(store)
            trainer = MultiLRTrainer(net, "sgd", {"momentum": 0.9}, max_grad_norm=MAX_NORM, **(store or {}))
            return train(net, trainer, batches(), contexts(store)), trainer

        (one, single), (two, trainer) = history(None), history(store)
        assert not trainer._update_on_kvstore
        assert all_close(two, one, 1e-6)
        assert trainer.grad_norms() == pytest.approx(single.grad_norms(), rel=1e-6)

    def test_contexts_agree(self):
        net = network({})
        train(net, MultiLRTrainer(net, "adam", max_grad_norm=MAX_NORM), batches(), CONTEXTS)
        for param in net.collect_params().values():
            one, two = param.list_data()
            assert bits(one) == bits(two)

    def test_set_before_the_first_step_the_trainer_updates(self):
        net = network({})
        trainer = MultiLRTrainer(net, "sgd")
        trainer.max_grad_norm = MAX_NORM
        train(net, trainer, batches(1), CONTEXTS)
        assert not trainer._update_on_kvstore

    def test_set_after_the_kvstore_began_to_update(self):
        net = network({})
        trainer = MultiLRTrainer(net, "sgd")
        train(net, trainer, batches(1), CONTEXTS)
        with pytest.raises(RuntimeError, match=r"the kvstore has been set up to update .* before the first step"):
            trainer.max_grad_norm = 1
        assert trainer.max_grad_norm is None
        trainer.max_grad_norm = None
        train(net, trainer, batches(1), CONTEXTS)

    def test_set_after_the_first_step_of_a_trainer_that_updates(self):
        net = network({})
        trainer = MultiLRTrainer(net, "sgd", update_on_kvstore=False)
        train(net, trainer, batches(1), CONTEXTS)
        trainer.max_grad_norm = MAX_NORM
        train(net, trainer, batches(1), CONTEXTS)
        assert trainer.total_grad_norm() > MAX_NORM

    @pytest.mark.parametrize(
        ("stores", "message"),
        [
            ({"update_on_kvstore": True}, "with update_on_kvstore=True .* Leave update_on_kvstore out"),
            ({"kvstore": "dist_sync", "update_on_kvstore": True}, "parameter servers .* Let the workers update"),
            ({"kvstore": "dist_async"}, "parameter servers .* Let the workers update"),
        ],
    )
    def test_a_kvstore_that_has_to(self, stores, message):
        net = network({})
        owner = net[0].weight._trainer
        with pytest.raises(ValueError, match=message):
            MultiLRTrainer([(net, 0.5)], "sgd", max_grad_norm=1, **stores)
        assert (net[0].weight._trainer, net[0].weight.lr_mult) == (owner, 1)
        trainer = MultiLRTrainer(net, "sgd", **stores)
        with pytest.raises(ValueError, match=message):
            trainer.max_grad_norm = 1
        assert trainer.max_grad_norm is None

    def test_a_distributed_kvstore_whose_workers_update_is_fine(self):
        assert MultiLRTrainer(network(), "sgd", kvstore="dist_sync", max_grad_norm=1).max_grad_norm == 1

    def test_sparse_gradients_on_a_distributed_kvstore(self):
        net = Embedder()
        net.initialize()
        with pytest.raises(ValueError, match=r"parameter servers .* dense weights and gradients"):
            MultiLRTrainer(net, "sgd", kvstore="dist_sync", max_grad_norm=1)

    def test_sparse_weights(self):
        params = gluon.ParameterDict()
        params.get("sparse", shape=(4, 2), stype="row_sparse", grad_stype="row_sparse")
        params.initialize()
        with pytest.raises(ValueError, match=r"row_sparse weights.*Use dense weights"):
            MultiLRTrainer(params, "sgd", max_grad_norm=1)

    @pytest.mark.parametrize("ctx", [None, CONTEXTS])
    def test_sparse_gradients(self, ctx):
        def history(kind, **kwargs):
            net = Embedder()
            net.initialize(ctx=ctx)
            trainer = kind(net.collect_params(), "sgd", {"learning_rate": 0.1}, **kwargs)
            found = []
            for rows in ([[0, 1], [2, 2]], [[1, 3], [0, 0]]):
                parts = gluon.utils.split_and_load(mx.nd.array(rows), ctx or [mx.cpu(0)])
                with mx.autograd.record():
                    losses = [(net(part) ** 2).sum() for part in parts]
                mx.autograd.backward(losses)
                size = 2
                if kind is Trainer:
                    size *= max(1, norm(gradients(net).values()) / 2 / 1e-3 + 1e-3)  # epsilon / max_norm
                trainer.step(size)
                found.append(snapshot(net))
            return found

        assert all_close(history(MultiLRTrainer, max_grad_norm=1e-3), history(Trainer))


def test_a_file_of_a_kvstore_that_updated_loads(tmp_path):
    net = network({})
    trainer = MultiLRTrainer(net, "sgd", {"momentum": 0.9})
    train(net, trainer, batches(2), CONTEXTS)
    trainer.save_states(tmp_path / "states")
    clipping = MultiLRTrainer(net, "sgd", max_grad_norm=1)
    clipping.load_states(tmp_path / "states")
    assert fingerprint(clipping, net)["states"] == fingerprint(trainer, net)["states"]
    assert not clipping._update_on_kvstore


def test_the_norm_of_an_update_that_amp_skipped_is_there_right_after_it():
    net = network()
    trainer = MultiLRTrainer(net, "sgd")
    trainer._amp_loss_scaler = LossScaler()
    backward(net, *batches(1)[0])
    gradient = trainer._params[0].grad()
    gradient[:] = float("inf")
    trainer.step(4)
    assert trainer.total_grad_norm() == float("inf")
