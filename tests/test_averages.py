"""A trainer tells the averages of its weights what it is about to update, and whether it did."""

import copy
import gc
import pickle

import mxnet as mx
import pytest

from multitrainer import MultiLRTrainer
from multitrainer.averages import Averages
from support import CONTEXTS, Overflow, backward, batches, mlp, train


class Recorder:
    """Stands for an average, and records what it is told, with the weights at that time."""

    def __init__(self, trainer):
        self.included = []
        trainer._averages.add(self)

    def _include(self, params):
        self.included.append({param.name: param.list_data()[0].asnumpy() for param in params})


def trained(ctx=None, **options):
    net = mlp(ctx)
    return net, MultiLRTrainer([net, (net[0], 0)], "sgd", {"learning_rate": 0.1}, **options)


@pytest.mark.parametrize("update_on_kvstore", [True, False])
def test_an_average_is_told_of_the_weights_before_they_change(update_on_kvstore):
    net, trainer = trained(CONTEXTS, update_on_kvstore=update_on_kvstore)
    recorder, before = Recorder(trainer), net[2].weight.list_data()[0].asnumpy()
    train(net, trainer, batches(1), CONTEXTS)
    assert trainer._update_on_kvstore == update_on_kvstore
    assert set(recorder.included[0]) == {
        "net_batchnorm0_gamma",
        "net_batchnorm0_beta",
        "net_dense1_weight",
        "net_dense1_bias",
    }
    assert (recorder.included[0]["net_dense1_weight"] == before).all()
    assert (net[2].weight.list_data()[0].asnumpy() != before).any()


def test_an_average_that_nobody_holds_is_forgotten():
    net, trainer = trained()
    recorder = Recorder(trainer)
    included = recorder.included
    del recorder
    gc.collect()
    train(net, trainer, batches(1))
    assert included == []


def test_counts_completed_updates():
    net, trainer = trained()
    averages = trainer._averages
    with pytest.raises(UserWarning, match="has not been updated"):
        trainer.step(1)
    assert averages.updates == 0
    train(net, trainer, batches(2))
    assert averages.updates == 2
    trainer._amp_loss_scaler, trainer._amp_original_scale = Overflow({2}), 1
    train(net, trainer, batches(3))
    assert averages.updates == 4
    trainer.set_lr_mult({net: 0})
    del trainer._amp_loss_scaler
    trainer.step(1)
    assert averages.updates == 5


def test_no_step_while_the_weights_are_averages():
    net, trainer = trained()
    trainer._averages.applied = True
    backward(net, *batches(1)[0])
    with pytest.raises(RuntimeError, match=r"step or update was called inside `with average.applied\(\):`"):
        trainer.step(4)
    assert trainer._averages.updates == trainer.optimizer.num_update == 0
    trainer._averages.applied = False
    trainer.step(4)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_has_no_averages(way):
    averages = Averages()
    averages.updates, averages.applied = 3, True
    averages.add(mx.gluon.Parameter("unpicklable", init=lambda: None))
    copied = way(averages)
    assert (copied.updates, copied.applied, list(copied._members)) == (3, False, [])
