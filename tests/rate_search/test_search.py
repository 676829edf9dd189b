"""The search sweeps the base rate as it says, stops as it says, and refuses what it cannot do or undo."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from multitrainer import MultiLRTrainer, ParamGroup, WeightAverage, find_learning_rate
from search_support import batches, build, dropout_mlp, everything, make_step
from support import CONTEXTS, Overflow, same, train

DATA = batches(4)


def quadratic(curvature=1.0, optimizer="sgd", **kwargs):
    """Return a trainer of one weight w under the loss curvature / 2 w^2, its step, and the rates it saw."""
    net = nn.Dense(1, use_bias=False, in_units=1, prefix="quadratic_")
    net.initialize(mx.init.One())
    trainer, rates = MultiLRTrainer(net, optimizer, {"learning_rate": 0.5}, **kwargs), []

    def train_step(batch):
        with autograd.record():
            loss = curvature / 2 * net(mx.nd.ones((1, 1))) ** 2
        loss.backward()
        rates.append(trainer.learning_rate)
        trainer.step(1)
        return loss

    return net, trainer, train_step, rates


class TestSweep:
    def test_rates_and_losses_follow_the_closed_formula(self):
        net, trainer, train_step, rates = quadratic(curvature=2.0)
        found = find_learning_rate(trainer, train_step, range(7), lowest=1e-4, highest=0.9, num_batches=50)
        expected = np.geomspace(1e-4, 0.9, 50)
        np.testing.assert_allclose(found.rates, expected, rtol=1e-12)
        np.testing.assert_allclose(rates, expected, rtol=1e-12)
        weights = np.concatenate([[1], np.cumprod(1 - 2 * expected)])[:-1]
        np.testing.assert_allclose(found.losses, weights**2, rtol=1e-4)
        assert net.weight.data().asscalar() == 1
        assert trainer.learning_rate == 0.5

    def test_the_ratios_of_groups_stay(self):
        net, trainer, _ = build()
        calls = []
        find_learning_rate(trainer, make_step(net, trainer, calls=calls), DATA, highest=0.1)
        assert [rates["net"] for rates in calls] == pytest.approx(np.geomspace(1e-6, 0.1, 100), rel=1e-12)
        assert [rates["0"] / rates["net"] for rates in calls] == pytest.approx([0.1] * 100)

    def test_it_stops_at_four_times_the_best_loss(self):
        losses = iter([*[1.0] * 20, *[100.0] * 80])
        _, trainer, train_step = build()
        found = find_learning_rate(trainer, lambda batch: (train_step(batch), next(losses))[1], DATA)
        assert list(found.losses) == [1.0] * 20 + [100.0]

    def test_negative_losses_do_not_stop_it(self):
        values = np.concatenate([np.linspace(-1, -10, 90), np.linspace(-10, 0, 10)])
        losses = iter(values.tolist())
        _, trainer, train_step = build()
        found = find_learning_rate(trainer, lambda batch: (train_step(batch), next(losses))[1], DATA)
        assert list(found.losses) == values.tolist()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_it_stops_at_a_loss_that_is_not_finite(self, bad):
        losses = iter([1.0] * 12 + [bad])
        _, trainer, train_step = build()
        found = find_learning_rate(trainer, lambda batch: (train_step(batch), next(losses))[1], DATA)
        assert len(found.losses) == 13
        assert len(found.smoothed) == 12

    def test_a_list_is_begun_again(self):
        _, trainer, train_step = build()
        seen = []
        find_learning_rate(trainer, lambda b: (seen.append(b), train_step(DATA[b]))[1], range(4), highest=0.01)
        assert seen == [*range(4)] * 25

    def test_an_iterator_ends_the_search(self):
        _, trainer, train_step = build()
        found = find_learning_rate(trainer, train_step, iter(DATA * 3))
        assert list(found.rates) == pytest.approx(np.geomspace(1e-6, 10, 100)[:12])

    def test_no_more_batches_are_taken_than_needed(self):
        _, trainer, train_step = build()
        source = iter(DATA * 10)
        find_learning_rate(trainer, train_step, source, highest=0.01, num_batches=15)
        assert len(list(source)) == 25

    def test_a_data_loader_shuffles_afterwards_as_without_the_search(self):
        def run(searched):
            np.random.seed(2)
            _, trainer, train_step = build(net=dropout_mlp())
            arrays = [mx.nd.concat(*parts, dim=0) for parts in zip(*DATA)]
            loader = gluon.data.DataLoader(gluon.data.ArrayDataset(*arrays), 4, shuffle=True, last_batch="discard")
            if searched:
                find_learning_rate(trainer, train_step, loader)
            return [train_step(batch).asnumpy().tobytes() for batch in [*loader, *loader]]

        assert run(False) == run(True)

    def test_groups_with_an_optimizer_of_their_own_keep_their_ratio(self):
        net, calls = dropout_mlp(), []
        head = ParamGroup(net[2], 0.5, name="head", optimizer="adam", optimizer_params={"learning_rate": 0.002})
        trainer = MultiLRTrainer([net, head], "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        train(net, trainer, DATA[:1])
        before = everything(trainer, net)
        found = find_learning_rate(trainer, make_step(net, trainer, calls=calls), DATA, highest=0.1)
        assert [rates["net"] for rates in calls] == pytest.approx(np.geomspace(1e-6, 0.1, 100))
        assert [rates["head"] / rates["net"] for rates in calls] == pytest.approx([0.5 * 0.02] * 100)
        assert everything(trainer, net) == before
        assert found.ratios == pytest.approx({"head": 0.02}, rel=1e-12)
        found.set_learning_rates(trainer, 0.3)
        assert trainer.learning_rates == pytest.approx({"net": 0.3, "head": 0.5 * 0.006}, rel=1e-12)

    @pytest.mark.parametrize("updates", [0, 3])
    @pytest.mark.parametrize("kind", ["CosineScheduler", "PolyScheduler"])
    def test_optimizers_with_schedulers_keep_the_ratio_of_what_these_were_built_with(self, kind, updates):
        net, calls, scheduler = dropout_mlp(), [], getattr(mx.lr_scheduler, kind)
        own = {"momentum": 0.9, "lr_scheduler": scheduler(5, base_lr=0.02, warmup_steps=2)}
        head = ParamGroup(net[2], name="head", optimizer="sgd", optimizer_params=own)
        trainer = MultiLRTrainer([net, head], "sgd", {"lr_scheduler": scheduler(9, base_lr=0.1)})
        train(net, trainer, DATA[:updates])
        found = find_learning_rate(trainer, make_step(net, trainer, calls=calls), DATA, highest=0.1)
        assert [rates["head"] / rates["net"] for rates in calls] == pytest.approx([0.2] * 100)
        assert found.ratios == pytest.approx({"head": 0.2}, rel=1e-12)

    @pytest.mark.parametrize("own", [None, 0.02])
    def test_optimizers_without_a_known_rate_have_no_ratio(self, own):
        net, _, _ = build()
        schedule = {"learning_rate": own} if own else {"lr_scheduler": lambda num_update: 0.1}
        head = ParamGroup(net[2], name="head", optimizer="sgd", optimizer_params=schedule)
        trainer = MultiLRTrainer([net, head], "sgd", {"learning_rate": 0} if own else {"learning_rate": 0.1})
        match = "is 0, to which" if own else "has no base_lr, so the rates .* give it the attribute base_lr"
        with pytest.raises(ValueError, match=match):
            find_learning_rate(trainer, make_step(net, trainer), DATA)

    def test_accumulation_leaves_the_suggestion_near(self):
        """100 batches make 25 updates then, and the losses are averaged over as many decades."""
        suggestions = []
        for steps in (1, 4):
            _, trainer, train_step, _ = quadratic(accumulate=steps)
            suggestions.append(find_learning_rate(trainer, train_step, DATA).suggestion)
        assert suggestions[1] == pytest.approx(suggestions[0], rel=0.7)


class TestPutsBack:
    @pytest.mark.parametrize("steps_before", [0, 2])
    def test_everything(self, steps_before):
        scheduler = mx.lr_scheduler.FactorScheduler(1, 0.7, base_lr=0.05)
        net, trainer, train_step = build("adam", net=dropout_mlp(), scheduler=scheduler)
        train(net, trainer, DATA[:steps_before])
        trainer._training()
        before = everything(trainer, net)
        found = find_learning_rate(trainer, train_step, DATA)
        assert len(found.rates) > 50
        assert everything(trainer, net) == before
        assert trainer.optimizer.lr_scheduler is scheduler

    def test_two_contexts_and_a_loss_for_each(self):
        net, trainer, train_step = build(ctx=CONTEXTS)
        train(net, trainer, DATA, CONTEXTS)
        before = everything(trainer, net)
        found = find_learning_rate(trainer, train_step, DATA)
        assert everything(trainer, net) == before
        losses = train_step(DATA[0])
        assert len(losses) == 2
        assert found.losses[0] == pytest.approx(np.mean([part.asnumpy() for part in losses]), rel=1e-5)

    @pytest.mark.parametrize("steps_before", [0, 1, 2, 3])
    def test_gradients_that_are_collected_for_one_update(self, steps_before):
        def run(searched):
            net, trainer, train_step = build("adam", net=dropout_mlp(), accumulate=3)
            history = train(net, trainer, DATA[:steps_before])
            if searched:
                trainer._training()
                before = everything(trainer, net), trainer.accumulated
                found = find_learning_rate(trainer, train_step, DATA, highest=0.1)
                assert (everything(trainer, net), trainer.accumulated) == before
                assert list(found.rates) == pytest.approx(np.geomspace(1e-6, 0.1, 33))
            return history + train(net, trainer, DATA)

        assert same(run(False), run(True))

    def test_averages_of_the_weights(self):
        net, trainer, train_step = build()
        average = WeightAverage(trainer)

        def step_and_average(batch):
            loss = train_step(batch)
            average.update()
            return loss

        def averaged():
            with average.applied():
                return everything(trainer, net)["arrays"]

        for batch in DATA:
            step_and_average(batch)
        before = averaged()
        find_learning_rate(trainer, step_and_average, DATA)
        assert averaged() == before
        step_and_average(DATA[0])
        assert averaged() != before

    def test_a_skipped_update_of_amp_is_no_error(self):
        _, trainer, train_step = build()
        trainer._amp_loss_scaler = Overflow(at={3, 4})
        find_learning_rate(trainer, train_step, DATA, highest=0.01, num_batches=10)
        assert trainer._amp_loss_scaler.calls == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "match", "kwargs"),
        [
            (ValueError, "0 < lowest < highest", {"lowest": 0}),
            (ValueError, "0 < lowest < highest", {"lowest": 1, "highest": 0.1}),
            (ValueError, "0 < lowest < highest", {"highest": float("inf")}),
            (ValueError, "0 < lowest < highest", {"highest": float("nan")}),
            (TypeError, "lowest must be a number", {"lowest": "1e-6"}),
            (TypeError, "whole number", {"num_batches": 20.0}),
            (ValueError, "at least 10", {"num_batches": 9}),
        ],
    )
    def test_arguments(self, error, match, kwargs):
        net, trainer, train_step = build()
        before = everything(trainer, net)
        with pytest.raises(error, match=match):
            find_learning_rate(trainer, train_step, DATA, **kwargs)
        assert everything(trainer, net) == before
        assert not trainer._kv_initialized

    def test_a_stock_trainer(self):
        net, _, train_step = build()
        stock = gluon.Trainer(net.collect_params(), "sgd")
        with pytest.raises(TypeError, match="must be a MultiLRTrainer, got Trainer"):
            find_learning_rate(stock, train_step, DATA)

    @pytest.mark.parametrize("result", [None, "0.5", [], [None], {"loss": 1}, np.array([])])
    def test_no_loss(self, result):
        self.check(TypeError, "must return the loss", lambda train_step, batch: (train_step(batch), result)[1])

    def test_no_update(self):
        self.check(ValueError, "made no update", lambda train_step, batch: 1.0)

    def test_two_updates(self):
        self.check(ValueError, "made 2 updates", lambda train_step, batch: (train_step(batch), train_step(batch))[1])

    def test_a_step_that_sets_the_learning_rate(self):
        def work(train_step, batch):
            trainer.set_learning_rate(0.1)
            return step(batch)

        _, trainer, step = build()
        with pytest.raises(ValueError, match="must not set the learning rate"):
            find_learning_rate(trainer, lambda batch: work(step, batch), DATA)
        assert trainer.learning_rate == 0.05

    def test_a_loss_that_is_never_finite(self):
        self.check(ValueError, "loss is nan at the lowest", lambda train_step, batch: train_step(batch) * np.nan)

    @staticmethod
    def check(error, match, work):
        net, trainer, train_step = build()
        train(net, trainer, DATA)
        before = everything(trainer, net)
        with pytest.raises(error, match=match):
            find_learning_rate(trainer, lambda batch: work(train_step, batch), DATA)
        assert everything(trainer, net) == before

    @pytest.mark.parametrize("source", [[], iter(DATA), (x for x in DATA)], ids=["list", "iterator", "generator"])
    def test_too_few_batches(self, source):
        _, trainer, train_step = build()
        with pytest.raises(ValueError, match=r"batches ended after [04] updates"):
            find_learning_rate(trainer, train_step, source)

    def test_everything_frozen(self):
        net, trainer, train_step = build()
        trainer.set_lr_mult({net: 0})
        with pytest.raises(ValueError, match="all Parameters are frozen"):
            find_learning_rate(trainer, train_step, DATA)

    def test_an_optimizer_without_learning_rate(self):
        _, trainer, train_step = quadratic(optimizer="adadelta")[:3]
        with pytest.raises(ValueError, match="AdaDelta has no learning rate"):
            find_learning_rate(trainer, train_step, DATA)

    def test_shapes_that_are_not_known_yet(self):
        net = nn.Dense(2, prefix="deferred_")
        net.initialize()
        trainer = MultiLRTrainer(net, "sgd")
        train_step = make_step(net, trainer)
        with pytest.raises(RuntimeError, match=r"deferred_weight.*no values yet|no values yet.*deferred_weight"):
            find_learning_rate(trainer, train_step, DATA)
        net(DATA[0][0])
        find_learning_rate(trainer, train_step, DATA)

    @pytest.mark.parametrize(("kvstore", "update_on_kvstore"), [("dist_async", None), ("dist_sync", True)])
    def test_parameter_servers_that_update(self, kvstore, update_on_kvstore):
        _, trainer, train_step = build(kvstore=kvstore, update_on_kvstore=update_on_kvstore)
        with pytest.raises(RuntimeError, match=r"cannot be searched if parameter servers update.*Let the workers"):
            find_learning_rate(trainer, train_step, DATA)
        assert not trainer._kv_initialized

    def test_compressed_gradients(self):
        _, trainer, train_step = build(ctx=CONTEXTS, compression_params={"type": "2bit", "threshold": 0.5})
        with pytest.raises(ValueError, match="compresses gradients"):
            find_learning_rate(trainer, train_step, DATA)


@pytest.mark.parametrize(
    ("loss", "mean"),
    [
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (mx.nd.array([[1, 2], [3, 6]]), 3.0),
        ([mx.nd.array([1, 2, 3]), mx.nd.array([10])], 4.0),
        (mx.nd.array([60000] * 4, dtype="float16"), 60000.0),
        (mx.nd.array([1, 3]).as_np_ndarray(), 2.0),
        ((0.5, 1.5), 1.0),
    ],
)
def test_losses_of_every_form_are_averaged(loss, mean):
    _, trainer, train_step = build()
    found = find_learning_rate(trainer, lambda b: (train_step(b), loss)[1], DATA, highest=1e-5, num_batches=10)
    assert list(found.losses) == pytest.approx([mean] * 10, rel=1e-3)
