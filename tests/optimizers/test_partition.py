"""Each Parameter is updated by the optimizer of its part, and every optimizer is scaled as that of a stock Trainer."""

import copy
import pickle

import mxnet as mx
import pytest
from mxnet import gluon

from multitrainer.optimizers.partition import Part, Partition, PartitionedUpdater, require_workers_update
from optimizer_zoo import Embedder
from support import bits, mlp


def parameters(count=4):
    params = [gluon.Parameter(f"p{i}", shape=(3,)) for i in range(count)]
    for i, param in enumerate(params):
        param.initialize()
        param.set_data(mx.nd.arange(3) + i)
    return params


def divided(params):
    """Return a partition whose middle two Parameters are under Adam."""
    partition = Partition(params, mx.optimizer.SGD(learning_rate=0.1, momentum=0.9))
    partition.add("middle", mx.optimizer.Adam(learning_rate=0.01), params[1:3])
    return partition


class TestPart:
    def test_owner(self):
        optimizer = mx.optimizer.SGD()
        assert Part(None, optimizer).owner == "the trainer"
        assert Part("head", optimizer).owner == "group 'head'"

    def test_planned_rates(self):
        optimizer = mx.optimizer.SGD(learning_rate=0.5)
        assert Part(None, optimizer).planned_rates(range(3)) == [0.5, 0.5, 0.5]

    def test_planned_rates_of_a_scheduler_go_by_the_optimizers_own_count_and_leave_the_scheduler_as_it_is(self):
        scheduler = mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=1.0)
        optimizer = mx.optimizer.SGD(lr_scheduler=scheduler, begin_num_update=1)
        before = bits(vars(scheduler))
        assert Part(None, optimizer).planned_rates(range(4)) == [1.0, 0.5, 0.5, 0.25]
        assert bits(vars(scheduler)) == before


class TestPartition:
    def test_with_one_optimizer(self):
        params = parameters()
        partition = Partition(params, mx.optimizer.SGD())
        assert not partition.is_divided
        assert partition.part_of(params[0]) is partition.main
        assert partition.indices(partition.main) == [0, 1, 2, 3]
        assert partition.divide({}) == []
        assert partition.divide({params[0]: 1}) == [(partition.main, {params[0]: 1})]
        assert partition.takes_part([]) == [False]
        assert partition.takes_part(iter(params)) == [True]
        updater = mx.optimizer.get_updater(partition.main.optimizer)
        assert partition.updaters(updater) == [(updater, [0, 1, 2, 3])]

    def test_with_two(self):
        params = parameters()
        partition = divided(params)
        main, middle = partition.parts
        assert partition.is_divided
        assert partition.main is main
        assert (main.group, middle.group) == (None, "middle")
        assert [partition.part_of(param) for param in params] == [main, middle, middle, main]
        assert (partition.indices(main), partition.indices(middle)) == ([0, 3], [1, 2])
        assert middle.optimizer.param_dict == dict(enumerate(params))
        numbers = {params[2]: 2, params[3]: 3, params[1]: 1}
        assert partition.divide(numbers) == [(middle, {params[2]: 2, params[1]: 1}), (main, {params[3]: 3})]
        assert partition.takes_part([params[1]]) == [False, True]
        assert partition.takes_part([params[3], params[0]]) == [True, False]
        assert partition.takes_part([]) == [False, False]

    def test_appended_parameters_are_under_the_main_optimizer_until_one_is_added(self):
        *params, late = parameters()
        partition = Partition(params, mx.optimizer.SGD())
        partition.add("middle", mx.optimizer.Adam(), params[1:])
        before = {name: copy.copy(value) for name, value in vars(partition).items()}
        found = dict(vars(partition))
        partition.append([late])
        assert partition.part_of(late) is partition.main
        assert [each.param_dict for each in partition.optimizers] == [dict(enumerate([*params, late]))] * 2
        partition.add("late", mx.optimizer.NAG(), [late])
        assert partition.indices(partition.parts[2]) == [3]
        assert found == before

    @pytest.mark.parametrize("scale", [1.0, 1 / 3, 1 / 65536], ids=["plain", "horovod", "amp"])
    @pytest.mark.parametrize("initial", [1.0, 0.3])
    def test_rescale_divides_as_stock_does(self, scale, initial):
        params = parameters()
        partition = Partition(params, mx.optimizer.SGD())
        partition.add("middle", mx.optimizer.Adam(rescale_grad=initial), params[1:3])
        for batch_size in (7, 3):
            partition.rescale(scale, batch_size)
            assert partition.parts[1].optimizer.rescale_grad == initial * scale / batch_size
            assert partition.main.optimizer.rescale_grad == 1  # stock Trainer sets it

    def test_rescale_knows_what_the_trainers_own_scale_was(self):
        params = parameters()
        partition = Partition(params, mx.optimizer.SGD(rescale_grad=0.3))
        partition.add("middle", mx.optimizer.Adam(rescale_grad=0.7), params[1:3])
        partition.rescale(0.3, 7)
        assert partition.parts[1].optimizer.rescale_grad == 0.7 / 7


def updater_of(partition):
    (updater,) = partition.divided([mx.optimizer.get_updater(partition.main.optimizer)])
    return updater


class TestPartitionedUpdater:
    def gradients(self, params):
        return [mx.nd.ones(3) * (i + 1) for i in range(len(params))]

    def update(self, updater, params, indices):
        weights, gradients = [param.data() for param in params], self.gradients(params)
        updater(tuple(indices), [gradients[i] for i in indices], [weights[i] for i in indices])
        return bits(weights)

    def test_updates_as_one_updater_for_each_part_does(self):
        ours, stock = parameters(), parameters()
        updater = updater_of(divided(ours))
        sgd, adam = (mx.optimizer.get_updater(part.optimizer) for part in divided(stock).parts)
        for _ in range(3):
            expected = [self.update(sgd, stock, [0, 3]), self.update(adam, stock, [1, 2])][-1]
            assert self.update(updater, ours, [0, 1, 2, 3]) == expected
        assert bits(updater.states) == bits({**sgd.states, **adam.states})

    def test_goes_on_with_the_states_that_there_are(self):
        params = parameters()
        partition = divided(params)
        before = mx.optimizer.get_updater(partition.main.optimizer)
        self.update(before, params, [0, 3])
        (updater,) = partition.divided([before])
        assert updater.states is before.states

    def test_leaves_out_a_part_that_is_not_asked_for(self):
        params = parameters()
        partition = divided(params)
        updater = updater_of(partition)
        self.update(updater, params, [2])
        assert list(updater.states) == [2]
        assert (partition.main.optimizer.num_update, partition.parts[1].optimizer.num_update) == (0, 1)

    def test_takes_a_single_index_as_stock_does(self):
        params = parameters()
        updater = updater_of(divided(params))
        updater(1, mx.nd.ones(3), params[1].data())
        assert list(updater.states) == [1]

    def test_parts_are_stock_updaters_with_the_states_of_all(self):
        params = parameters()
        partition = divided(params)
        updater = updater_of(partition)
        own = partition.updaters(updater)
        assert [indices for _, indices in own] == [[0, 3], [1, 2]]
        for (part_updater, _), part in zip(own, partition.parts):
            assert type(part_updater) is mx.optimizer.Updater
            assert part_updater.optimizer is part.optimizer
            assert part_updater.states is updater.states
        updater.states, updater.states_synced = {}, {}
        assert partition.updaters(updater)[0][0].states is updater.states

    def test_a_pickle_goes_on_in_the_same_way(self):
        params = parameters()
        updater = updater_of(divided(params))
        self.update(updater, params, [0, 1, 2, 3])
        copied = pickle.loads(pickle.dumps(updater))
        assert isinstance(copied, PartitionedUpdater)
        other = copied._partition._params
        assert self.update(copied, other, [0, 1, 2, 3]) == self.update(updater, params, [0, 1, 2, 3])


class TestRequireWorkersUpdate:
    def test_chooses_that_workers_update(self):
        trainer = gluon.Trainer(mlp().collect_params(), "sgd")
        require_workers_update(trainer)
        assert trainer._kvstore_params["update_on_kvstore"] is False

    @pytest.mark.parametrize(
        ("store", "why"),
        [
            ({"update_on_kvstore": True}, "but update_on_kvstore is True, and a kvstore holds one optimizer only"),
            ({"kvstore": "dist_async"}, "but kvstore 'dist_async' updates on the parameter servers"),
        ],
    )
    def test_refuses_kvstores_that_update(self, store, why):
        trainer = gluon.Trainer(mlp().collect_params(), "sgd", **store)
        with pytest.raises(ValueError, match=f"{why}.*Use a synchronous kvstore"):
            require_workers_update(trainer)

    def test_refuses_sparse_weights_and_sparse_gradients_on_several_machines(self):
        weight = gluon.Parameter("w", shape=(4, 2), stype="row_sparse", grad_stype="row_sparse")
        weight.initialize()
        with pytest.raises(ValueError, match="row_sparse weights, and row_sparse gradients on several machines"):
            require_workers_update(gluon.Trainer([weight], "sgd"))
        net = Embedder()
        net.initialize()
        with pytest.raises(ValueError, match="row_sparse"):
            require_workers_update(gluon.Trainer(net.collect_params(), "sgd", kvstore="dist_sync"))
        require_workers_update(gluon.Trainer(net.collect_params(), "sgd"))

    def test_refuses_a_scale_of_0(self):
        trainer = gluon.Trainer(mlp().collect_params(), "sgd", {"rescale_grad": 0})
        with pytest.raises(ValueError, match="rescale_grad of the trainer's optimizer is 0"):
            require_workers_update(trainer)
