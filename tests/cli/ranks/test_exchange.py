"""What ranks exchange; the same on real clusters is in tests/distributed."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
import pytest

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.exchange import Ranks
from support import mlp, snapshot
from thread_ranks import run_ranks


def test_one_process_alone_is_the_first_rank():
    alone = Ranks()
    assert (alone.rank, alone.size, alone.local_rank, alone.is_first) == (0, 1, 0, True)
    assert run_ranks(3, lambda ranks: ranks.is_first) == [True, False, False]


def test_shares_are_disjoint_and_even_shares_equally_long():
    shares = run_ranks(3, lambda ranks: (ranks.share(range(8)), ranks.even_share(range(8))))
    assert [list(share) for share, _ in shares] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [list(even) for _, even in shares] == [[0, 3], [1, 4], [2, 5]]


def test_a_batch_is_divided_evenly_or_refused():
    assert run_ranks(2, lambda ranks: ranks.batch_share(8)) == [4, 4]
    errors = run_ranks(2, lambda ranks: ranks.batch_share(9))
    assert all(isinstance(error, UserError) for error in errors)
    assert "a batch of 9 images cannot be divided among 2 ranks" in str(errors[0])
    assert "a --batch-size that is a multiple of 2" in str(errors[0])


def test_a_process_alone_steps_by_its_own_images():
    assert Ranks().step_batch_size(7) == 7


def test_a_trainer_has_the_groups_the_settings_and_the_kvstore():
    net = mlp()
    trainer = Ranks("local").make_trainer([ParamGroup(net, 0.5)], "nag", {"learning_rate": 0.25})
    assert type(trainer) is MultiLRTrainer
    assert type(trainer.optimizer) is mx.optimizer.NAG
    assert (trainer.learning_rate, net[0].weight.lr_mult) == (0.25, 0.5)
    assert trainer._kvstore_params["kvstore"] == "local"


@pytest.mark.parametrize("conditions", [[False, False, False], [False, True, False], [True, True, True]])
def test_any_is_true_on_all_ranks_if_it_is_on_one(conditions):
    found = run_ranks(3, lambda ranks: ranks.any(conditions[ranks.rank]))
    assert found == [any(conditions)] * 3
    assert Ranks().any(True)
    assert not Ranks().any(False)


def test_parameters_are_those_of_the_first_rank():
    nets = [mlp(), mlp(), mlp()]
    for shift, net in enumerate(nets):
        for param in net.collect_params().values():
            param.set_data(param.data() + shift)
    before = snapshot(nets[0])
    errors = run_ranks(3, lambda ranks: ranks.broadcast_parameters(nets[ranks.rank].collect_params().values()))
    assert errors == [None] * 3
    for net in nets:
        for name, array in snapshot(net).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parameters_become_their_average_over_the_devices(count):
    devices = [mx.cpu(number) for number in range(count)]
    net = mlp(ctx=devices)
    before = snapshot(net)
    for number, device in enumerate(devices):
        net[0].weight.data(device)[:] += number
    assert Ranks().broadcast_parameters(net.collect_params().values()) is None
    for device in devices:
        first = net[0].weight.data(devices[0]).asnumpy()
        np.testing.assert_allclose(first, before[net[0].weight.name] + (count - 1) / 2, rtol=1e-6)
        np.testing.assert_array_equal(net[0].weight.data(device).asnumpy(), first)
        np.testing.assert_array_equal(net[0].bias.data(device).asnumpy(), before[net[0].bias.name])


def test_an_empty_set_of_parameters_is_accepted():
    assert run_ranks(2, lambda ranks: ranks.broadcast_parameters([])) == [None, None]


@pytest.mark.parametrize("length", [0, 1, 255, 2**16, 2**20, 2**20 + 3])
def test_bytes_are_those_of_the_first_rank_whatever_their_length(length):
    data = bytes(np.random.RandomState(length).randint(0, 256, length, "uint8"))
    received = run_ranks(2, lambda ranks: ranks.broadcast_bytes(data if ranks.is_first else b"other bytes"))
    assert received == [data, data]
    assert Ranks().broadcast_bytes(data) == data


@pytest.mark.parametrize("values", [["a", "b"], [["x", 1], ["x", 2]], [None, 0]])
def test_other_values_are_refused_on_all_ranks(values):
    errors = run_ranks(2, lambda ranks: ranks.check_same("options", values[ranks.rank]))
    assert [type(error) for error in errors] == [UserError, UserError]
    assert str(errors[1]) == "the ranks were given different options; start every rank with the same"


def test_equal_values_are_accepted():
    assert run_ranks(3, lambda ranks: ranks.check_same("options", {"seed": 7})) == [None] * 3
    assert Ranks().check_same("options", "anything") is None


def test_the_first_rank_alone_runs_a_function_and_all_get_its_result():
    called = []

    def work(ranks):
        return ranks.run_on_first(lambda: called.append(ranks.rank) or {"rows": [1.5, None]})

    assert run_ranks(3, work) == [{"rows": [1.5, None]}] * 3
    assert called == [0]
    assert Ranks().run_on_first(lambda: json) is json  # alone, it need not fit into JSON


def test_an_error_of_the_first_rank_is_raised_on_all():
    def work(ranks):
        def refuse():
            raise UserError(f"refused by {ranks.rank}")

        return ranks.run_on_first(refuse)

    errors = run_ranks(2, work)
    assert [(type(error), str(error)) for error in errors] == [(UserError, "refused by 0")] * 2


def test_a_file_of_the_first_rank_can_be_read_on_all(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "net.params").write_bytes(b"weights")

    def work(ranks):
        with ranks.local_copy(tmp_path / str(ranks.rank) / "net.params") as path:
            return path, path.read_bytes()

    (first, content), (second, same) = run_ranks(2, work)
    assert content == same == b"weights"
    assert first.name == second.name == "net.params"
    assert not first.exists()  # copies end with the block
    assert not second.exists()
    with Ranks().local_copy(tmp_path / "0" / "net.params") as path:
        assert path == tmp_path / "0" / "net.params"
