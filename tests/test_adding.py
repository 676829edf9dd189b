"""`MultiLRTrainer.add`: what the trainer has stays bit for bit, and the new Parameters start as in a new trainer."""

import copy
import sys

import matplotlib as mpl
import mxnet as mx
import pytest
from mxnet.contrib.amp.loss_scaler import LossScaler
from mxnet.gluon import Trainer, nn

from multitrainer import MultiLRTrainer, ParamGroup, plot_learning_rates
from multitrainer.adding import check_addition, undone_on_error
from support import CONTEXTS, backward, batches, fingerprint, mlp, moved, same, snapshot, train, with_gradients

mpl.use("Agg")
OPTIMIZERS = [
    ("sgd", {"momentum": 0.9, "wd": 0.01}),
    ("adam", {"wd": 0.01}),
    ("nag", {"momentum": 0.9}),
    ("rmsprop", {}),
    ("lamb", {}),
    ("lars", {"momentum": 0.9}),
]
STORES = [
    ({}, None),
    ({"kvstore": None}, None),
    ({"kvstore": "local"}, CONTEXTS),
    ({"kvstore": "device"}, CONTEXTS),
    ({"update_on_kvstore": True}, CONTEXTS),
    ({"update_on_kvstore": False}, CONTEXTS),
]


class Net(nn.HybridBlock):
    """A body, and a head that the tests replace."""

    def __init__(self, prefix="net_"):
        super().__init__(prefix=prefix)
        with self.name_scope():
            self.body = nn.Dense(16, in_units=3, activation="tanh")
            self.output = nn.Dense(2, in_units=16)

    def hybrid_forward(self, F, x):  # noqa: N803
        return self.output(self.body(x))


def build(groups=lambda net: [net, (net.body, 0.5)], optimizer="sgd", ctx=None, params=None, **options):
    mx.random.seed(3)
    net = Net()
    net.initialize(mx.init.Xavier(), ctx=ctx)
    params = {"learning_rate": 0.1, "momentum": 0.9} if params is None else params
    return net, MultiLRTrainer(groups(net), optimizer, params, **options)


def replace(net, ctx=None, in_units=16):
    mx.random.seed(4)
    with net.name_scope():
        net.output = nn.Dense(2, in_units=in_units)
    net.output.initialize(mx.init.Xavier(), ctx=ctx)
    return net.output


class TestEqualsTwoStockTrainers:
    """One that had the first Parameters from the start, and one that is made for the others when they are added."""

    def train(self, add, kind, optimizer, params, ctx=None, hybridize=False, **options):
        net = mlp(ctx, batchnorm=False)
        if hybridize:
            net.hybridize(static_alloc=True, static_shape=True)
        trainers = [kind(net[0].collect_params(), optimizer, {"learning_rate": 0.05, **params}, **options)]
        history, data = [], batches(7)
        for number, (x, y) in enumerate(data):
            if number == 3:
                add(net, trainers, optimizer, {"learning_rate": 0.05, **params}, options)
            backward(net, x, y, ctx)
            for trainer in trainers:
                trainer.step(len(x))
            history.append(snapshot(net))
        return history, trainers

    def both(self, *args, **kwargs):
        expected, _ = self.train(
            lambda net, trainers, optimizer, params, options: trainers.append(
                Trainer(net[1].collect_params(), optimizer, params, **options)
            ),
            Trainer,
            *args,
            **kwargs,
        )
        ours, (trainer,) = self.train(
            lambda net, trainers, *_: trainers[0].add(net[1]), MultiLRTrainer, *args, **kwargs
        )
        assert trainer.optimizer.num_update == 7
        return ours, expected

    @pytest.mark.parametrize(("optimizer", "params"), OPTIMIZERS)
    @pytest.mark.parametrize("hybridize", [False, True])
    def test_under_every_kind_of_optimizer(self, optimizer, params, hybridize):
        assert same(*self.both(optimizer, params, hybridize=hybridize))

    @pytest.mark.parametrize(("options", "ctx"), STORES)
    @pytest.mark.parametrize(("optimizer", "params"), OPTIMIZERS[:2])
    def test_over_every_kvstore_of_one_process(self, optimizer, params, options, ctx):
        assert same(*self.both(optimizer, params, ctx=ctx, **options))

    @pytest.mark.parametrize("fast", ["0", "1"])
    @pytest.mark.parametrize(("optimizer", "params"), OPTIMIZERS[:3])
    def test_with_the_fused_update_and_without(self, optimizer, params, fast, monkeypatch):
        monkeypatch.setenv("MULTITRAINER_FAST", fast)
        assert same(*self.both(optimizer, params))


@pytest.mark.parametrize(
    "write",
    [
        lambda block: block,
        lambda block: [block],
        lambda block: (block,),
        lambda block: block.collect_params(),
        lambda block: dict(block.collect_params().items()),
        lambda block: list(block.collect_params().values()),
        lambda block: block.weight,
        lambda block: {block: 3},
        lambda block: [(block, 3)],
        lambda block: [block, (block.weight, 2)],
        lambda block: ParamGroup(block, lr_mult=3, wd_mult=0),
        lambda block: [ParamGroup(block, lr_mult=3, name="head")],
        lambda block: [(block, lambda num_update: 1 / num_update)],
    ],
)
def test_takes_what_the_constructor_takes(write):
    net, trainer = build()
    other, fresh = build()
    del fresh
    head, twin = replace(net), replace(other)
    expected = MultiLRTrainer(write(twin), "sgd")
    trainer.add(write(head))
    names = [param.name for param in trainer._params]
    assert names == [f"net_dense{i}_{kind}" for i in (0, 1) for kind in ("bias", "weight")] + [
        param.name for param in expected._params
    ]
    assert trainer._param2idx == {name: i for i, name in enumerate(names)}
    assert trainer.optimizer.idx2name == dict(enumerate(names))
    for ours, stock in zip(trainer._params[4:], expected._params):
        assert (ours.lr_mult, ours.wd_mult) == (stock.lr_mult, stock.wd_mult)
        assert trainer.optimizer.param_dict[trainer._param2idx[ours.name]] is ours
        assert ours._trainer is trainer


class TestReplacedHead:
    """The network was named, and gets another head."""

    @pytest.mark.parametrize("hybridize", [False, True])
    @pytest.mark.parametrize("ignore_stale_grad", [False, True])
    def test_the_new_head_trains_and_the_old_one_needs_no_gradient(self, hybridize, ignore_stale_grad):
        net, trainer = build()
        if hybridize:
            net.hybridize()
        train(net, trainer, batches(2))
        old, head = net.output, replace(net)
        before, old_before = snapshot(net), snapshot(old)
        with pytest.raises(
            ValueError, match=r"net_dense2_weight, net_dense2_bias of layer 'output' would never be trained"
        ):
            train(net, trainer, batches(1))
        trainer.add([(head, 10)])
        for x, y in batches(2):
            backward(net, x, y)
            trainer.step(4, ignore_stale_grad=ignore_stale_grad)
        assert moved(before, snapshot(net)) == set(before)
        assert moved(old_before, snapshot(old)) == set()

    def test_the_step_that_raised_can_be_made_after_it(self):
        net, trainer = build()
        train(net, trainer, batches(1))
        replace(net)
        before = snapshot(net)
        backward(net, *batches(1)[0])
        with pytest.raises(ValueError, match=r"trainer\.add"):
            trainer.step(4)
        trainer.add(net.output)
        trainer.step(4)
        assert moved(before, snapshot(net)) == set(before)

    def test_heads_can_take_turns(self):
        net, trainer = build()
        heads = [net.output, replace(net)]
        trainer.add(heads[1])
        for turn in (0, 1, 1, 0, 1):
            net.output = heads[turn]
            before = [snapshot(head) for head in heads]
            train(net, trainer, batches(1))
            assert not moved(before[1 - turn], snapshot(heads[1 - turn]))
            assert moved(before[turn], snapshot(heads[turn])) == set(before[turn])
        assert trainer.optimizer.num_update == 5

    def test_is_shown_by_everything_that_shows_groups(self):
        net, trainer = build(params={"learning_rate": 0.1})
        head = replace(net)
        trainer.add([ParamGroup(head, lr_mult=10, wd_mult=0)])
        assert [group.name for group in trainer.groups] == ["net", "body", "output"]
        assert set(trainer.groups[2].params) == {"net_dense2_weight", "net_dense2_bias"}
        assert trainer.learning_rates == {"net": 0.1, "body": 0.05, "output": 1.0}
        assert trainer.summary().splitlines()[-1].split() == ["output", "2", "34", "10", "1", "0", "trained"]
        assert "10 by entry 2 'output'" in trainer.explain("net_dense2_weight")
        assert "0.5 by entry 1 'body', which refines" not in trainer.explain("net_dense0_weight")
        assert "0.5 by entry 1 'body'" in trainer.explain("net_dense0_weight")
        assert "3 groups, 6 parameters" in repr(trainer)
        legend = [text.get_text() for text in plot_learning_rates(trainer, 3).get_legend().get_texts()]
        assert legend == ["net", "body", "output"]

    def test_its_name_differs_from_that_of_the_old_one(self):
        net, trainer = build(lambda net: [net, (net.output, 2)])
        trainer.add(replace(net))
        trainer.add(replace(net))
        assert [group.name for group in trainer.groups] == ["net", "output", "net_dense2", "net_dense3"]
        head = replace(net)
        with pytest.raises(ValueError, match="has a group 'output' already"):
            trainer.add(ParamGroup(head, name="output"))
        trainer.add(ParamGroup(head, name="third"))

    def test_the_table_says_that_the_old_one_left_the_network(self):
        net, trainer = build(lambda net: [net, (net.body, 0)])
        assert [line.split("  ")[-1] for line in trainer.summary().splitlines()[1:]] == ["trained", "frozen"]
        rates = trainer.learning_rates
        old = net.output
        trainer.add([(replace(net), 1)])
        rows = [(line.split()[0], line.split("  ")[-1]) for line in trainer.summary().splitlines()[1:]]
        assert rows == [("net", "left the network"), ("body", "frozen"), ("output", "trained")]
        assert trainer.explain(old.bias.name).startswith("net_dense1_bias: 2, left the network\n")
        assert trainer.learning_rates == {**rates, "output": 0.1}

    def test_a_row_is_divided_if_a_part_of_it_left_the_network(self):
        net, trainer = build(lambda net: net)
        trainer.add(replace(net))
        rows = [(*line.split()[:2], line.split("  ")[-1]) for line in trainer.summary().splitlines()[1:]]
        assert rows == [("net", "2", "trained"), ("net", "2", "left the network"), ("output", "2", "trained")]
        assert trainer.learning_rates == {"net": 0.1, "output": 0.1}

    def test_deep_in_a_network_that_was_traced(self):
        mx.random.seed(3)
        inner, net = Net("inner_"), nn.HybridSequential(prefix="net_")
        net.add(inner, nn.Dense(2, in_units=2, prefix="last_"))
        net.initialize()
        net.hybridize()
        trainer = MultiLRTrainer(net, "sgd")
        train(net, trainer, batches(1))
        head = replace(inner)  # MXNet drops the trace of ``inner``, which nobody calls
        trainer.add(head)
        before = snapshot(head)
        train(net, trainer, batches(1))
        assert moved(before, snapshot(head)) == set(before)

    @pytest.mark.parametrize("ctx", [None, CONTEXTS])
    def test_with_a_shape_that_the_first_forward_pass_tells(self, ctx):
        net, trainer = build(ctx=ctx)
        train(net, trainer, batches(1), ctx)
        head = replace(net, ctx, in_units=0)
        trainer.add([(head, 0.5)])
        assert "shape not known yet" in trainer.explain(head.weight.name)
        train(net, trainer, batches(2), ctx)
        values = [array.asnumpy() for array in head.weight.list_data()]
        assert all((value == values[0]).all() for value in values)


class TestRefused:
    """Errors that are raised before anything has changed."""

    @pytest.mark.parametrize(
        ("write", "error", "message"),
        [
            (
                lambda net: net,
                ValueError,
                r"net_dense0_weight, net_dense0_bias \(2 of 4\) .* set_lr_mult .*dense2_weight",
            ),
            (lambda net: net.body, ValueError, r"\(2 of 2\) belong to this trainer already: set_lr_mult"),
            (
                lambda net: [(net.output, 2), (net.body.bias, 0.1)],
                ValueError,
                r"entry 1 \(\(Parameter 'net_dense0_bias'",
            ),
            (lambda net: [(net.output, -1)], ValueError, "must be a finite number >= 0"),
            (lambda net: [(net.output, "fast")], TypeError, "must be a number >= 0"),
            (lambda net: [(net.output, lambda num_update: -1)], ValueError, "from its schedule at update 3"),
            (lambda net: [(net.output, lambda num_update: 1 / 0)], RuntimeError, "cannot be evaluated"),
            (lambda net: [], ValueError, "holds no Parameter"),
            (lambda net: nn.Activation("relu"), ValueError, "holds no Parameter"),
            (lambda net: net.output.collect_params("nothing"), ValueError, "holds no Parameter"),
            (lambda net: 3, TypeError, "params must be"),
            (lambda net: {"params": net.output.collect_params(), "lr": 1}, TypeError, r"entry 0 .*write a group as"),
            (
                lambda net: nn.Dense(2, prefix="new_"),
                ValueError,
                r"'new_bias' is not initialized: call layer\.init",
            ),
            (lambda net: dense("net_dense0_"), ValueError, r"another Parameter called 'net_dense0_weight' .* prefix="),
            (
                lambda net: [dense("new_"), dense("new_")],
                ValueError,
                "two different Parameters are called 'new_weight'",
            ),
            (lambda net: dense("new_", CONTEXTS), ValueError, r"'new_bias' is on \[cpu\(0\), cpu\(1\)\].*reset_ctx"),
            (lambda net: [net.output, (net.output, 1), (net.output, 2)], ValueError, "gets lr_mult 1.0 from entry 1"),
        ],
    )
    def test_without_a_change(self, write, error, message):
        net, trainer = build()
        train(net, trainer, batches(2))
        replace(net)
        before, params, groups = fingerprint(trainer, net), list(trainer._params), trainer.groups
        what = write(net)
        multipliers = {name: param.lr_mult for name, param in net.collect_params().items()}
        with pytest.raises(error, match=message):
            trainer.add(what)
        assert fingerprint(trainer, net) == before
        assert trainer._params == params
        assert trainer.groups == groups
        assert {name: param.lr_mult for name, param in net.collect_params().items()} == multipliers
        assert net.output.weight._trainer is None
        trainer.add(net.output)  # and the right call works
        train(net, trainer, batches(1))

    def test_a_multiplier_that_the_optimizer_ignores(self):
        net, trainer = build(lambda net: net, "adadelta", params={})
        head = replace(net)
        with pytest.raises(ValueError, match="would have no effect: AdaDelta"):
            trainer.add([(head, 0.1)])
        trainer.add([(head, 0)])
        assert head.weight.lr_mult == 0

    def test_an_earlier_assignment_that_cannot_be_used(self):
        net, trainer = build()
        net.body.weight.lr_mult = -1
        head = replace(net)
        with pytest.raises(ValueError, match="lr_mult of Parameter 'net_dense0_weight'"):
            trainer.add(head)
        assert head.weight._trainer is None

    def test_parameter_servers_that_have_the_optimizer(self):
        net, trainer = build()
        head = replace(net)
        trainer._distributed = trainer._update_on_kvstore = True
        with pytest.raises(RuntimeError, match=r"'net_dense2_bias' cannot be added any more.*update_on_kvstore=False"):
            trainer.add(head)


def dense(prefix, ctx=None, units=2, in_units=16):
    layer = nn.Dense(units, in_units=in_units, prefix=prefix)
    layer.initialize(ctx=ctx)
    return layer


class TestUpdateCounts:
    @pytest.mark.parametrize("replaced", [False, True])
    def test_num_update_goes_on_and_the_counts_of_new_parameters_begin(self, replaced):
        net, trainer = build(optimizer="adam", params={})
        train(net, trainer, batches(3))
        extra = dense("extra_")
        trainer.add([replace(net), extra] if replaced else extra)
        for x, y in batches(2):
            backward(net, x, y)
            trainer.step(4, ignore_stale_grad=True)
        counts = {trainer._params[i].name: count for i, count in trainer.optimizer._index_update_count.items()}
        assert counts["net_dense0_weight"] == 5
        assert counts["net_dense1_weight"] == (3 if replaced else 5)
        assert counts.get("net_dense2_weight") == (2 if replaced else None)
        assert "extra_weight" not in counts
        assert trainer.optimizer.num_update == 5

    @pytest.mark.parametrize("old", ["trains", "is frozen", "left the network"])
    def test_schedules_and_lr_scheduler_go_on(self, old):
        seen, asked = [], []

        class Scheduler(mx.lr_scheduler.LRScheduler):
            def __call__(self, num_update):
                asked.append(num_update)
                return 0.5**num_update

        net, trainer = build(params={"lr_scheduler": Scheduler()})
        train(net, trainer, batches(3))
        if old == "is frozen":
            trainer.set_lr_mult({net: 0})
        if old == "left the network":
            net.body = dense("other_", in_units=3, units=16)
            trainer.add(net.body)
        new = replace(net)

        def schedule(num_update):
            seen.append(num_update)
            return 1.0

        trainer.add([(new, schedule)])
        asked.clear()
        before = snapshot(new)
        backward(net, *batches(1)[0])
        gradient = new.weight.grad().asnumpy()
        trainer.step(4)
        assert set(asked) == {4}
        assert seen[0] == 4
        assert max(seen) == 5
        expected = before[new.weight.name] - 0.5**4 * gradient / 4
        assert abs(new.weight.data().asnumpy() - expected).max() < 1e-6

    def test_added_before_the_first_update_nothing_differs_from_a_trainer_of_both(self):
        net, trainer = build(lambda net: net.body)
        trainer.add(net.output)
        twin, whole = build(lambda net: net)
        assert same(train(net, trainer, batches(4)), train(twin, whole, batches(4)))
        assert not trainer._multipliers.was_frozen


class TestFreezing:
    @pytest.mark.parametrize("hybridize", [False, True])
    @pytest.mark.parametrize("ctx", [None, CONTEXTS])
    def test_of_new_parameters(self, hybridize, ctx):
        net, trainer = build(ctx=ctx)
        if hybridize:
            net.hybridize(static_alloc=True, static_shape=True)
        train(net, trainer, batches(1), ctx)
        head = replace(net, ctx)
        trainer.add([(head, 0)])
        before = snapshot(net)
        train(net, trainer, batches(2), ctx)
        assert moved(before, snapshot(net)) == {"net_dense0_weight", "net_dense0_bias"}
        trainer.set_lr_mult({head: 1})
        train(net, trainer, batches(2), ctx)
        assert moved(before, snapshot(net)) == set(before)
        head.collect_params().setattr("lr_mult", 0)
        trainer._multipliers.sync()
        before = snapshot(net)
        train(net, trainer, batches(2), ctx)
        assert moved(before, snapshot(net)) == {"net_dense0_weight", "net_dense0_bias"}

    def test_while_all_others_are_frozen(self):
        net, trainer = build()
        train(net, trainer, batches(1))
        trainer.set_lr_mult({net: 0})
        momentum = {i: state.asnumpy() for i, state in trainer._updaters[0].states.items()}
        head = replace(net)
        trainer.add(head)
        before = snapshot(net)
        train(net, trainer, batches(2))
        assert moved(before, snapshot(net)) == {"net_dense2_weight", "net_dense2_bias"}
        assert all((trainer._updaters[0].states[i].asnumpy() == state).all() for i, state in momentum.items())

    def test_of_a_frozen_batchnorm(self):
        net, trainer = build()
        norm = nn.HybridSequential(prefix="norm_")
        with norm.name_scope():
            norm.add(nn.BatchNorm(in_channels=3))
        norm.initialize()
        trainer.add([(norm, 0)])
        whole = nn.HybridSequential(prefix="whole_")
        whole.add(norm, net)
        before = snapshot(whole)
        train(whole, trainer, batches(2))
        assert not {name for name in moved(before, snapshot(whole)) if "norm" in name}

    @pytest.mark.parametrize("door", ["assigned before", "assigned after", "optimizer"])
    def test_by_either_door(self, door):
        net, trainer = build()
        train(net, trainer, batches(1))
        head = replace(net)
        if door == "assigned before":
            head.collect_params().setattr("lr_mult", 0)
        trainer.add(head)
        if door == "assigned after":
            head.collect_params().setattr("lr_mult", 0)
        if door == "optimizer":
            trainer.optimizer.set_lr_mult({"net_dense2_weight": 0, "net_dense2_bias": 0})
        before = snapshot(head)
        train(net, trainer, batches(2))
        assert not moved(before, snapshot(head))

    def test_what_was_assigned_to_the_others_before_takes_effect(self):
        net, trainer = build()
        train(net, trainer, batches(1))
        net.body.collect_params().setattr("lr_mult", 0)
        trainer.optimizer.set_wd_mult({"net_dense0_weight": 3, "net_dense0_bias": 3, "net_dense1_bias": 1})
        trainer.add(replace(net))
        assert net.body.weight.grad_req == "null"
        assert net.body.weight.wd_mult == 3


class TestOrderOfCalls:
    @pytest.mark.parametrize("ctx", [None, CONTEXTS])
    def test_between_a_backward_pass_and_its_step(self, ctx):
        net, trainer = build(ctx=ctx)
        train(net, trainer, batches(1), ctx)
        backward(net, *batches(1)[0], ctx)
        head = replace(net, ctx)  # which that pass did not reach
        trainer.add(head)
        before = snapshot(net)
        trainer.step(4)
        assert moved(before, snapshot(net)) == {"net_dense0_weight", "net_dense0_bias"}
        train(net, trainer, batches(1), ctx)
        assert moved(before, snapshot(net)) == set(before)

    def test_between_the_exchange_and_the_update_new_gradients_are_not_used(self):
        net, trainer = build(lambda net: net.body, ctx=CONTEXTS, update_on_kvstore=False)
        for _ in range(2):
            backward(net, *batches(1)[0], CONTEXTS)
            trainer.allreduce_grads()
            if len(trainer._params) == 2:
                trainer.add(net.output)  # its gradients differ between the contexts
            trainer.update(4)
            for param in net.collect_params().values():
                one, two = (array.asnumpy() for array in param.list_data())
                assert (one == two).all()

    def test_after_a_step_that_failed(self):
        net, trainer = build()
        train(net, trainer, batches(1))
        with pytest.raises(UserWarning, match="has not been updated"):
            trainer.step(4)
        replace(net)
        trainer.add(net.output)
        before = snapshot(net)
        train(net, trainer, batches(1))
        assert moved(before, snapshot(net)) == set(before)

    @pytest.mark.parametrize("call", range(2, 4700, 41))
    def test_an_interrupted_call_can_be_repeated(self, call):
        net, trainer = build()
        train(net, trainer, batches(2))
        head = replace(net)
        twin, whole = build()
        train(twin, whole, batches(2))
        replace(twin)
        whole.add([(twin.output, lambda num_update: num_update - 3)])
        lines = [0]

        def trace(frame, event, arg):
            lines[0] += 1
            if lines[0] == call:
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            trainer.add([(head, lambda num_update: num_update - 3)])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if len(trainer._params) == 4:
            assert "net_dense2_weight" not in trainer._multipliers.schedules["lr_mult"]
            trainer.add([(head, lambda num_update: num_update - 3)])
        assert fingerprint(trainer, net) == fingerprint(whole, twin)
        assert same(train(net, trainer, batches(3)), train(twin, whole, batches(3)))


class TestCheckpoints:
    """Parameters are identified by name, so the order in which they came does not matter."""

    def run(self, tmp_path, make, ctx=None, **options):
        net, trainer = build(lambda net: [(net.output, 0.5)], ctx=ctx, **options)
        train(net, trainer, batches(2), ctx)
        trainer.add([(net.body, 2)])
        trainer.set_lr_mult({net.output.bias: 0})
        train(net, trainer, batches(2), ctx)
        net.save_parameters(str(tmp_path / "net"))
        trainer.save_states(tmp_path / "states")
        other, resumed = make(build, ctx, options)
        other.load_parameters(str(tmp_path / "net"), ctx=ctx)
        resumed.load_states(tmp_path / "states")
        assert fingerprint(resumed, other) == fingerprint(trainer, net)
        assert same(train(net, trainer, batches(3), ctx), train(other, resumed, batches(3), ctx))
        assert fingerprint(resumed, other) == fingerprint(trainer, net)

    @pytest.mark.parametrize(("options", "ctx"), STORES)
    @pytest.mark.parametrize("how", ["built whole", "built and added", "in the other order"])
    def test_resume_bit_for_bit(self, tmp_path, how, options, ctx):
        def make(build, ctx, options):
            if how == "built whole":
                return build(lambda net: net, ctx=ctx, **options)
            first, second = ("output", "body") if how == "built and added" else ("body", "output")
            net, trainer = build(lambda net: getattr(net, first), ctx=ctx, **options)
            trainer.add(getattr(net, second))
            return net, trainer

        self.run(tmp_path, make, ctx, **options)

    @pytest.mark.parametrize("optimizer", ["adam", "lamb", "ftml"])
    def test_with_optimizers_that_count(self, tmp_path, optimizer):
        make = lambda build, ctx, options: build(lambda net: net, ctx=ctx, **options)  # noqa: E731
        self.run(tmp_path, make, optimizer=optimizer, params={})

    def test_with_one_that_goes_by_the_order_of_parameters(self, tmp_path):
        def make(build, ctx, options):
            net, trainer = build(lambda net: net.output, ctx=ctx, **options)
            trainer.add(net.body)
            return net, trainer

        self.run(tmp_path, make, optimizer="nadam", params={})

    def test_a_trainer_that_lacks_what_was_added_says_what_to_do(self, tmp_path):
        net, trainer = build(lambda net: net.output)
        trainer.add(net.body)
        train(net, trainer, batches(1))
        trainer.save_states(tmp_path / "states")
        other, resumed = build(lambda net: net.output)
        with pytest.raises(ValueError, match=r"not in this trainer: net_dense0_bias.* trainer\.add, add them here"):
            resumed.load_states(tmp_path / "states")
        resumed.add(other.body)
        assert resumed.load_states(tmp_path / "states") == {}

    def test_of_a_network_whose_head_was_replaced(self, tmp_path):
        net, trainer = build()
        train(net, trainer, batches(2))
        trainer.add(replace(net))
        train(net, trainer, batches(2))
        net.save_parameters(str(tmp_path / "net"))
        trainer.save_states(tmp_path / "states")
        other, _ = build()
        replace(other)
        other.load_parameters(str(tmp_path / "net"))
        resumed = MultiLRTrainer(other, "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        left_out = resumed.load_states(tmp_path / "states", partial=True)
        assert left_out == {"net_dense1_weight": "not in this trainer", "net_dense1_bias": "not in this trainer"}
        assert same(train(net, trainer, batches(3)), train(other, resumed, batches(3)))

    def test_from_before_the_addition(self, tmp_path):
        net, trainer = build(lambda net: net.output)
        train(net, trainer, batches(1))
        trainer.save_states(tmp_path / "states")
        trainer.add(net.body)
        with pytest.raises(ValueError, match="not in the file: net_dense0_bias, net_dense0_weight"):
            trainer.load_states(tmp_path / "states")
        assert set(trainer.load_states(tmp_path / "states", partial=True)) == {"net_dense0_bias", "net_dense0_weight"}

    def test_a_file_of_stock(self, tmp_path):
        net, trainer = build(lambda net: net.output)
        train(net, trainer, batches(1))
        stock = Trainer(net.output.collect_params(), "sgd", {"learning_rate": 0.3, "momentum": 0.9})
        train(net.output, stock, [(mx.nd.ones((4, 16)), mx.nd.ones((4, 2)))])
        stock.save_states(str(tmp_path / "stock"))
        trainer.load_states(tmp_path / "stock", allow_pickle=True)
        trainer.add([(net.body, 2)])
        train(net, trainer, batches(1))
        assert trainer.learning_rates == {"net_dense1": 0.3, "net_dense0": 0.6}


class TestCopies:
    def test_of_a_trainer_with_additions_train_alike(self):
        net, trainer = build(optimizer="adam", params={})
        train(net, trainer, batches(1))
        trainer.add([(replace(net), 3)])
        train(net, trainer, batches(1))
        twin, copied = copy.deepcopy((net, trainer))
        with_gradients(twin)
        assert same(train(net, trainer, batches(2)), train(twin, copied, batches(2)))
        assert copied.summary() == trainer.summary()
        extra = nn.Dense(1, in_units=1, prefix="extra_")
        extra.initialize()
        copied.add(extra)
        assert len(trainer._params) == 6
        assert len(trainer.groups) == 3

    def test_without_the_network_complain_of_stale_gradients_as_stock_does(self):
        net, trainer = build()
        train(net, trainer, batches(1))
        copied = copy.deepcopy(trainer)
        with pytest.raises(UserWarning, match="has not been updated"):
            copied.step(4)

    def test_can_be_added_to(self):
        net, trainer = build()
        train(net, trainer, batches(1))
        twin, copied = copy.deepcopy((net, trainer))
        with_gradients(twin)
        for each, owner in ((net, trainer), (twin, copied)):
            with pytest.raises(ValueError, match=r"trainer\.add"):
                replace(each) and train(each, owner, batches(1))
            owner.add(each.output)
        assert same(train(net, trainer, batches(2)), train(twin, copied, batches(2)))


class TestOwners:
    def test_a_parameter_of_another_trainer_moves(self):
        """As it does when it is given to a new trainer."""
        net, trainer = build(lambda net: net.body)
        other = Trainer(net.output.collect_params(), "sgd")
        trainer.add(net.output)
        assert net.output.weight._trainer is trainer
        assert other is not trainer

    def test_unless_it_is_sparse(self):
        param = mx.gluon.Parameter("sparse_weight", shape=(2, 2), stype="row_sparse", init="ones")
        param.initialize()
        other = Trainer([param], "sgd")
        net, trainer = build()
        before = fingerprint(trainer, net)
        with pytest.raises(RuntimeError, match="More than one trainers for a row_sparse"):
            trainer.add(param)
        assert param._trainer is other
        assert fingerprint(trainer, net) == before
        assert len(trainer._params) == len(trainer.optimizer.param_dict) == 4

    def test_two_trainers_of_a_gan(self):
        generator, discriminator = mlp(prefix="g_"), mlp(prefix="d_")
        trainers = [MultiLRTrainer(each, "sgd") for each in (generator, discriminator)]
        both = nn.HybridSequential()
        both.add(generator)
        generator.add(nn.Dense(3, in_units=2, prefix="to_d_"))
        generator.initialize()
        both.add(discriminator)
        with pytest.raises(ValueError, match="to_d_weight"):
            train(both, trainers[0], batches(1))
        trainers[0].add(generator[-1])
        before = snapshot(both)
        for x, y in batches(2):
            backward(both, x, y)
            for trainer in trainers:
                trainer.step(4)
        assert {name for name in set(before) - moved(before, snapshot(both)) if "running" not in name} == set()


class TestSparse:
    @pytest.mark.parametrize("ctx", [None, CONTEXTS])
    def test_gradients_in_one_process(self, ctx):
        net, trainer = build(ctx=ctx)
        train(net, trainer, batches(1), ctx)
        table = nn.Embedding(5, 3, sparse_grad=True, prefix="table_")
        table.initialize(ctx=ctx)
        trainer.add(table)
        before = snapshot(table)
        losses = []
        with mx.autograd.record():
            for each in ctx or [mx.cpu()]:
                losses.append(net(table(mx.nd.array([1, 2, 2], ctx=each))).sum())
        mx.autograd.backward(losses)
        trainer.step(1)
        changed = (before["table_weight"] != table.weight.list_data()[-1].asnumpy()).any(axis=1)
        assert changed.tolist() == [False, True, True, False, False]

    def test_weights_before_the_first_step_only(self):
        net, trainer = build(ctx=CONTEXTS)
        param = mx.gluon.Parameter("sparse_weight", shape=(2, 2), stype="row_sparse", init="ones")
        param.initialize(ctx=CONTEXTS)
        train(net, trainer, batches(1), CONTEXTS)
        with pytest.raises(RuntimeError, match=r"'sparse_weight' is sparse, .* before that, or build a new trainer"):
            trainer.add(param)
        net, trainer = build(ctx=CONTEXTS)
        trainer.add(param)
        assert trainer._contains_sparse_weight


def test_multi_precision():
    net, trainer = build(optimizer="sgd", params={"momentum": 0.9, "multi_precision": True})
    train(net, trainer, batches(1))
    half = mx.gluon.Parameter("half_weight", shape=(3,), dtype="float16", init="ones")
    half.initialize()
    trainer.add(half)
    half.list_grad()[0][:] = 1
    half.list_data()[0]._fresh_grad = True
    backward(net, *batches(1)[0])
    trainer.step(1)
    state = trainer._updaters[0].states[4]
    assert [array.dtype.__name__ for array in (state[0], state[1])] == ["float32", "float32"]


def test_under_amp_an_overflow_of_a_new_gradient_skips_the_update():
    net, trainer = build()
    trainer._amp_loss_scaler, trainer._amp_original_scale = LossScaler(), trainer._scale
    train(net, trainer, batches(1))
    head = replace(net)
    trainer.add(head)
    before = snapshot(net)
    backward(net, *batches(1)[0])
    head.weight.grad()[:] = float("inf")
    trainer.step(4)
    assert not moved(before, snapshot(net))
    assert trainer.optimizer.num_update == 1
    train(net, trainer, batches(1))
    assert moved(before, snapshot(net)) == set(before)


def test_multipliers_of_an_imported_network_are_read(tmp_path):
    weight = mx.sym.Variable("fc_weight", lr_mult=0.25)
    output = mx.sym.FullyConnected(mx.sym.Variable("data"), weight, name="fc", num_hidden=2)
    block = mx.gluon.SymbolBlock(output, mx.sym.var("data"))
    block.initialize()
    _, trainer = build()
    trainer.add(block)
    assert block.collect_params()["fc_weight"].lr_mult == 0.25


def test_check_addition_looks_at_the_trainer_only():
    net = mlp()
    trainer = Trainer(net[0].collect_params(), "sgd")
    check_addition(trainer, list(net[2].collect_params().values()), [mx.cpu(0)])
    with pytest.raises(ValueError, match=r"is on \[cpu\(0\)\], and those of this trainer are on \[cpu\(1\)\]"):
        check_addition(trainer, list(net[2].collect_params().values()), [mx.cpu(1)])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_undone_on_error(error):
    class Thing:
        pass

    one, other = Thing(), Thing()
    one.a, other.a = 1, [2]

    def fail(raised):
        with undone_on_error([one, other]):
            one.a, one.b, other.a = 2, 3, [4]
            if raised:
                raise error

    with pytest.raises(error):
        fail(True)
    assert (vars(one), vars(other)) == ({"a": 1}, {"a": [2]})
    fail(False)
    assert (vars(one), vars(other)) == ({"a": 2, "b": 3}, {"a": [4]})


@pytest.mark.parametrize("update_on_kvstore", [None, False])
def test_a_head_that_was_replaced_stays_as_it_is_on_two_contexts(update_on_kvstore):
    """A kvstore that updates leaves its last gradient marked as fresh."""
    net = mlp(CONTEXTS, batchnorm=False)
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1}, update_on_kvstore=update_on_kvstore)
    train(net, trainer, batches(2), CONTEXTS)
    old, new = net[1], nn.Dense(2, in_units=4, prefix="new_")
    new.initialize(ctx=CONTEXTS)
    net._children["1"] = new
    trainer.add(new)
    before = [snapshot(head) for head in (old, new)]
    train(net, trainer, batches(3), CONTEXTS)
    assert not moved(before[0], snapshot(old))
    assert moved(before[1], snapshot(new)) == set(before[1])
    for x, y in batches(2):  # used again, by hand
        with mx.autograd.record():
            losses = [((old(net[0](part)) - target) ** 2).sum() for part, target in shares(x, y)]
        mx.autograd.backward(losses)
        before = snapshot(old)
        trainer.step(len(x), ignore_stale_grad=True)
        assert moved(before, snapshot(old)) == set(before)


def shares(x, y):
    return zip(*(mx.gluon.utils.split_and_load(array, CONTEXTS) for array in (x, y)))
