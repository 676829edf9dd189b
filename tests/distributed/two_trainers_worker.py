"""One worker of a ps-lite cluster that has several trainers: ``two_trainers_worker.py SCENARIO FOLDER``."""

# isort: off
import multitrainer
import mxnet as mx

# isort: on
import gc
import json
import os
import pathlib
import sys
import traceback

from mxnet import autograd, gluon
from mxnet.gluon import nn

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import gan

SCENARIO, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])


def trainers_for(networks, kvstore, kinds=(multitrainer.MultiLRTrainer, multitrainer.MultiLRTrainer), **options):
    return {
        name: kind(
            net if kind is multitrainer.MultiLRTrainer else net.collect_params(),
            *gan.OPTIMIZER,
            kvstore=kvstore,
            **options,
        )
        for (name, net), kind in zip(networks.items(), kinds)
    }


def my_share(kv):
    size = gan.BATCH // kv.num_workers
    return slice(size * kv.rank, size * (kv.rank + 1))


def train_gan(networks, trainers, kv):
    change = gan.freeze_and_unfreeze(networks, trainers)
    gan.save(FOLDER / f"rank{kv.rank}.npz", gan.train(networks, trainers, 5, my_share(kv), change=change))


def two_names():
    """Both trainers get the name of the kvstore, as in a script for one trainer."""
    kv = connect_by_name()
    networks = gan.make_networks()
    train_gan(networks, trainers_for(networks, "dist_sync"), kv)


def connect_by_name():
    """Let a trainer of its own make the connection, which tells the rank."""
    net = nn.Dense(2, in_units=3)
    trainer = make_sgd(net, "dist_sync")
    step_once(net, trainer)
    return trainer._kvstore


def one_object():
    kv = mx.kv.create("dist_sync")
    networks = gan.make_networks(deferred=True)
    train_gan(networks, trainers_for(networks, kv), kv)


def a_name_beside_an_object():
    kv = mx.kv.create("dist_sync")
    networks = gan.make_networks()
    trainers = trainers_for(networks, kv)
    trainers["generator"] = multitrainer.MultiLRTrainer(networks["generator"], *gan.OPTIMIZER, kvstore="dist_sync")
    train_gan(networks, trainers, kv)


def the_store_of_another_trainer():
    kv = connect_by_name()
    networks = gan.make_networks()
    train_gan(networks, trainers_for(networks, kv), kv)


def stock_beside(order):
    kv = mx.kv.create("dist_sync")
    kinds = {"generator": gluon.Trainer, "discriminator": multitrainer.MultiLRTrainer}
    networks = gan.make_networks()
    if order == "stock first":  # the discriminator makes the first step
        kinds = {"generator": multitrainer.MultiLRTrainer, "discriminator": gluon.Trainer}
    trainers = trainers_for(networks, kv, kinds.values(), update_on_kvstore=False)
    for trainer in trainers.values():
        if type(trainer) is gluon.Trainer:  # whose initial pull may be late, and fetch gradients
            trainer._init_kvstore()
            trainer._init_params()
    mx.nd.waitall()
    kv._barrier()
    gan.save(FOLDER / f"rank{kv.rank}.npz", gan.train(networks, trainers, 5, my_share(kv)))


def one_after_another():
    """As in cross-validation: a trainer is deleted, and another trains the same network from its first weights."""
    for fold in range(3):
        kv = connect_by_name()
        networks = gan.make_networks()
        trainers = trainers_for(networks, "dist_sync")
        gan.save(FOLDER / f"fold{fold}rank{kv.rank}.npz", gan.train(networks, trainers, 2, my_share(kv)))
        del trainers, kv
        gc.collect()


def states():
    """Save both trainers after three steps, and resume with new ones in the same process."""
    kv = mx.kv.create("dist_sync")
    networks = gan.make_networks()
    trainers = trainers_for(networks, kv)
    history = gan.train(networks, trainers, 3, my_share(kv))
    for name, trainer in trainers.items():
        trainer.save_states(FOLDER / name)
    kv._barrier()
    trainers = trainers_for(networks, kv)
    for name, trainer in trainers.items():
        trainer.load_states(FOLDER / name)
    history += gan.train(networks, trainers, 2, my_share(kv))
    gan.save(FOLDER / f"rank{kv.rank}.npz", history)


def other_order_of_steps():
    kv = mx.kv.create("dist_sync")
    nets = [nn.Dense(2, in_units=3, prefix=prefix) for prefix in ("a_to_b_", "b_to_a_")]
    trainers = [make_sgd(net, kv) for net in nets]
    begin = kv.rank
    report(kv, error_of(lambda: step_once(nets[begin], trainers[begin])))


def other_order_of_creation():
    kv = mx.kv.create("dist_sync")
    nets = [nn.Dense(size, in_units=3) for size in ((2, 4) if kv.rank else (4, 2))]
    trainers = [make_sgd(net, kv) for net in nets]
    report(kv, error_of(lambda: step_once(nets[0], trainers[0])))


def other_names():
    """A rank that made more networks before has other numbers in its names."""
    kv = mx.kv.create("dist_sync")
    for _ in range(kv.rank):
        nn.Dense(1)
    net = nn.Dense(2, in_units=3)
    trainer = make_sgd(net, kv)
    report(kv, error_of(lambda: step_once(net, trainer)))


def servers_update(kvstore, *options):
    first, second = (nn.Dense(2, in_units=3, prefix=prefix) for prefix in ("first_", "second_"))
    one, two = (make_sgd(net, kvstore, **each) for net, each in zip((first, second), options))
    errors = [error_of(lambda: step_once(first, one)), *(error_of(lambda: step_once(second, two)) for _ in range(2))]
    errors.append(error_of(lambda: step_once(first, one)))
    report(one._kvstore, errors)


def servers_update_for_stock():
    kv = mx.kv.create("dist_sync")
    first, second = (nn.Dense(2, in_units=3, prefix=prefix) for prefix in ("first_", "second_"))
    first.initialize()
    stock = gluon.Trainer(first.collect_params(), "sgd", {"learning_rate": 0.1}, kvstore=kv)
    step_once(first, stock)
    ours = make_sgd(second, kv)
    report(kv, error_of(lambda: step_once(second, ours)))


def two_types():
    first, second = (nn.Dense(2, in_units=3, prefix=prefix) for prefix in ("first_", "second_"))
    one, two = make_sgd(first, "dist_sync"), make_sgd(second, "dist_device_sync")
    step_once(first, one)
    report(one._kvstore, error_of(lambda: step_once(second, two)))


def make_sgd(net, kvstore, **options):
    net.initialize()
    return multitrainer.MultiLRTrainer(net, "sgd", {"learning_rate": 0.1}, kvstore=kvstore, **options)


def step_once(net, trainer):
    with autograd.record():
        loss = net(mx.nd.ones((4, 3))).sum()
    loss.backward()
    trainer.step(4)
    mx.nd.waitall()


def error_of(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def report(kv, what):
    (FOLDER / f"rank{kv.rank}.json").write_text(json.dumps(what))
    kv._barrier()


SCENARIOS = {
    "two names": two_names,
    "one object": one_object,
    "a name beside an object": a_name_beside_an_object,
    "the store of another trainer": the_store_of_another_trainer,
    "stock first": lambda: stock_beside("stock first"),
    "stock second": lambda: stock_beside("stock second"),
    "one after another": one_after_another,
    "states": states,
    "other order of steps": other_order_of_steps,
    "other order of creation": other_order_of_creation,
    "other names": other_names,
    "servers, servers": lambda: servers_update("dist_sync", *[{"update_on_kvstore": True}] * 2),
    "servers, workers": lambda: servers_update("dist_sync", {"update_on_kvstore": True}, {}),
    "workers, servers": lambda: servers_update("dist_sync", {}, {"update_on_kvstore": True}),
    "async": lambda: servers_update("dist_async", {}, {}),
    "servers update for stock": servers_update_for_stock,
    "two types": two_types,
}

if __name__ == "__main__":
    try:
        SCENARIOS[SCENARIO]()
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # at a normal exit, an MXNet worker waits for the others
