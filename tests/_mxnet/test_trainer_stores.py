"""Keys of its own for each trainer; on real servers in tests/distributed/test_two_trainers.py."""

import gc
import itertools

import mxnet as mx
import pytest
from mxnet import gluon

from multitrainer import MultiLRTrainer
from multitrainer._mxnet import trainer_stores
from multitrainer._mxnet.trainer_stores import TrainerStore
from support import mlp


def store_with(*values, keys):
    """Return a store on ``keys`` with a value for each of its own keys 0, 1, 2, ..."""
    store = TrainerStore(keys[0], keys[1])
    for key, value in enumerate(values):
        store.broadcast(key, mx.nd.full(3, value), mx.nd.zeros(3))
    return store


def pulled(store, key):
    out = mx.nd.zeros(3)
    store.pull(key, out)
    return out.asnumpy().tolist()


def test_two_stores_of_one_connection_do_not_meet():
    connection, free = mx.kv.create("local"), itertools.count(100)
    one, two = store_with(1, 2, keys=(connection, free)), store_with(3, keys=(connection, free))
    assert [pulled(one, 0), pulled(one, 1), pulled(two, 0)] == [[1] * 3, [2] * 3, [3] * 3]
    total = mx.nd.zeros(3)
    one.pushpull(0, [mx.nd.full(3, 4.0), mx.nd.full(3, 5.0)], total)
    assert total.asnumpy().tolist() == [9] * 3
    two.push(0, mx.nd.full(3, 6.0))
    assert [pulled(one, 0), pulled(one, 1), pulled(two, 0)] == [[9] * 3, [2] * 3, [6] * 3]
    assert [pulled(connection, key) for key in (100, 101, 102)] == [[9] * 3, [2] * 3, [6] * 3]


def test_a_key_that_is_begun_again_is_new_on_the_servers():
    """Servers take the second first value of a key for a gradient."""
    connection = mx.kv.create("local")
    store = store_with(1, keys=(connection, itertools.count(100)))
    store.broadcast(0, mx.nd.full(3, 7.0), mx.nd.zeros(3))
    store.init("name", mx.nd.full(3, 8.0))
    assert [pulled(store, 0), pulled(store, "name"), pulled(connection, 100)] == [[7] * 3, [8] * 3, [1] * 3]


def test_a_store_is_what_trainers_expect_and_leaves_the_connection_open():
    connection = mx.kv.create("local")
    store = store_with(1, keys=(connection, itertools.count(100)))
    assert isinstance(store, mx.kv.KVStore)
    assert (store.type, store.rank, store.num_workers) == ("local", 0, 1)
    del store
    gc.collect()
    assert pulled(connection, 100) == [1] * 3


def test_a_connection_lives_as_long_as_its_stores():
    store = store_with(1, keys=(mx.kv.create("local"), itertools.count(100)))
    gc.collect()
    assert pulled(store, 0) == [1] * 3


def test_keys_are_those_from_which_mxnet_computes_a_server():
    """``(key * 9973) % num_servers`` in 32 bits; up to 12 servers get what they would get from key 0 on."""
    first, last = trainer_stores._FIRST_KEY, trainer_stores._LAST_KEY
    assert last * 9973 < 2**31 <= (last + 1) * 9973
    for servers in range(1, 13):
        assert all((first + key) * 9973 % servers == key * 9973 % servers for key in range(200))


def test_keys_that_are_used_up_are_an_error():
    store = TrainerStore(mx.kv.create("local"), itertools.count(trainer_stores._LAST_KEY))
    store.init(0, mx.nd.zeros(1))
    with pytest.raises(RuntimeError, match="have used all 159889 keys that parameter servers can tell apart"):
        store.init(1, mx.nd.zeros(1))


def trainer(net, kvstore="dist_sync", **options):
    return MultiLRTrainer(net, "sgd", kvstore=kvstore, **options)


def test_only_trainers_for_parameter_servers_are_numbered():
    begin = trainer(mlp())._creation_number
    assert [trainer(mlp(), kvstore)._creation_number for kvstore in ("device", None, mx.kv.create("local"))] == [0] * 3
    assert trainer(mlp())._creation_number == begin + 1


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (lambda: gluon.nn.Dense(2, in_units=3, prefix="net12_"), True),
        (lambda: gluon.nn.Dense(2, in_units=3, prefix="other1_"), False),
        (lambda: gluon.nn.Dense(3, in_units=2, prefix="net1_"), False),
        (lambda: gluon.nn.Dense(2, prefix="net1_"), False),
        (lambda: gluon.nn.Dense(2, in_units=3, prefix="net1_", dtype="float64"), False),
        (lambda: gluon.nn.Dense(2, in_units=3, prefix="net1_", use_bias=False), False),
    ],
)
def test_fingerprints_differ_if_trainers_do(other, equal):
    nets = gluon.nn.Dense(2, in_units=3, prefix="net1_"), other()
    for net in nets:
        net.initialize()
    one, two = (trainer_stores._fingerprint(trainer(net), 1) for net in nets)
    assert (one == two) == equal
    assert one != trainer_stores._fingerprint(trainer(nets[0]), 2)


def test_other_kvstores_are_left_alone():
    ours = trainer(mlp(), mx.kv.create("local"))
    with trainer_stores.sharing_connection(ours, 0):
        assert type(ours._kvstore_params["kvstore"]) is mx.kv.KVStore
