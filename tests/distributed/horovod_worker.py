"""One rank of a Horovod job: ``horovod_worker.py CASE FOLDER`` trains, and writes every step to FOLDER."""

# isort: off
import multitrainer
import mxnet as mx

# isort: on
import json
import os
import pathlib
import sys

import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from support import convolution, mlp, snapshot

BATCH = 8  # of all ranks together


def main(case, folder):
    import horovod.mxnet as hvd

    sets = [hvd.ProcessSet(case["process_set"])] if "process_set" in case else []
    hvd.init(process_sets=sets)
    (folder / f"pid{hvd.rank()}").write_text(str(os.getpid()))
    taking_part = sets[0].ranks if sets else list(range(hvd.size()))
    if hvd.rank() in taking_part:
        rank_main(case, folder, hvd, sets, taking_part)
    hvd.allreduce(mx.nd.ones(1), name="end").wait_to_read()  # when one rank ends, all process sets end


def rank_main(case, folder, hvd, sets, taking_part):
    from multitrainer.horovod import DistributedMultiLRTrainer

    options = {
        key: case[key] for key in ("num_groups", "gradient_predivide_factor", "prefix", "accumulate") if key in case
    }
    if "compression" in case:
        options["compression"] = getattr(hvd.Compression, case["compression"])
    if sets:
        options["process_set"] = sets[0]
    net = make_net(case, shift=taking_part.index(hvd.rank()))
    trainer = make_trainer(DistributedMultiLRTrainer, case, net, **options)
    average = multitrainer.WeightAverage(trainer, case["average"]) if "average" in case else None
    reduced = record_reductions(hvd)
    share = BATCH // len(taking_part)
    begin = share * taking_part.index(hvd.rank())
    history, sizes, states, figures = [], [], [], []
    trainer.update_ratios()
    if "resume" in case:
        net.load_parameters(str(pathlib.Path(case["resume"]) / "net"))
        trainer.load_states(pathlib.Path(case["resume"]) / "states")
    for step in range(case.get("first", 0), case.get("steps", 3)):
        if step == case.get("save_at"):
            trainer.save_states(folder / ("states" if hvd.rank() == taking_part[0] else f"states of {hvd.rank()}"))
            if hvd.rank() == taking_part[0]:
                net.save_parameters(str(folder / "net"))
        change(step, case, net, trainer, hvd.rank())
        train(step, net, trainer, slice(begin, begin + share))
        history.append(snapshot(net))
        if average is not None:
            average.update()
            average.save(folder / f"average of rank {hvd.rank()}")
            with average.applied():
                history[-1].update({f"average {name}": array for name, array in snapshot(net).items()})
        states.append(sorted(trainer._updaters[0].states))
        figures.append(figures_of(trainer))
        sizes.append(list(reduced))
        reduced.clear()
    arrays = {f"{step}/{name}": array for step, arrays in enumerate(history) for name, array in arrays.items()}
    np.savez(folder / f"rank{hvd.rank()}.npz", **arrays)
    (folder / f"rank{hvd.rank()}.json").write_text(json.dumps({"reduced": sizes, "states": states, "figures": figures}))


def train_alone(case, figures=None):
    """Train the same case on the whole batch in this process, without Horovod; return the weights after every step.

    The norms and ratios of every step are added to ``figures``.
    """
    net = make_net(case, shift=0)
    options = {"accumulate": case["accumulate"]} if "accumulate" in case else {}
    trainer = make_trainer(multitrainer.MultiLRTrainer, case, net, **options)
    trainer.update_ratios()
    history = []
    for step in range(case.get("steps", 3)):
        change(step, case, net, trainer, rank=0)
        train(step, net, trainer, slice(0, BATCH))
        history.append(snapshot(net))
        if figures is not None:
            figures.append(figures_of(trainer))
    return history


def figures_of(trainer):
    """Return the norms of the gradients by group and of all of them, and the update ratios, of the last step."""
    if trainer.accumulated:  # the last update was at an earlier step
        return {}, {}
    return {**trainer.grad_norms(), "total": trainer.total_grad_norm()}, trainer.update_ratios()


def make_net(case, shift):
    """Return the network of the first rank, with ``shift`` added to its weights: those of rank 0 must win."""
    if case.get("deferred"):
        mx.random.seed(3 + shift)
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(nn.Dense(4), nn.Dense(2))
        net.initialize(mx.init.Xavier())
    elif case.get("convolution"):
        net = convolution(shift)
    else:
        net = mlp(batchnorm=case.get("batchnorm", False))
        for param in net.collect_params().values():
            param.set_data(param.data() + shift)
    if case.get("hybridize"):
        net.hybridize(static_alloc=True, static_shape=True)
    return net


def make_trainer(kind, case, net, **options):
    groups = [(net[int(path)], multiplier) for path, multiplier in case.get("groups", {}).items()]
    for path, (optimizer, params) in case.get("own", {}).items():
        groups.append(multitrainer.ParamGroup(net[int(path)], optimizer=optimizer, optimizer_params=params))
    if "schedule" in case:
        groups.append((net[case["schedule"]], lambda num_update: 1 / num_update if num_update > 1 else 0))
    params = {"learning_rate": 0.05, **case.get("optimizer_params", {})}
    options["max_grad_norm"] = case.get("max_grad_norm")
    known = net if "built_on" not in case else net[case["built_on"]]
    return kind([known, *groups], case.get("optimizer", "sgd"), params, **options)


def change(step, case, net, trainer, rank):
    """Make the changes of the case that come before ``step``, on all ranks or on those that it names."""
    for at, setter, path, value, *only_on in case.get("changes", []):
        if at != step or (only_on and rank not in only_on):
            continue
        if setter == "set_learning_rate":
            trainer.set_learning_rate(value)
        elif setter == "add":
            trainer.add([(net[path], value)])
        else:
            getattr(trainer, setter)({net[path]: value})


def train(step, net, trainer, share):
    rng = np.random.RandomState(step)
    x, y = rng.randn(BATCH, 3).astype("float32")[share], rng.randn(BATCH, 2).astype("float32")[share]
    with autograd.record():
        loss = gluon.loss.L2Loss()(net(mx.nd.array(x)), mx.nd.array(y))
    if any(param.grad_req != "null" for param in net.collect_params().values()):
        loss.backward()
    trainer.step(len(x))


def record_reductions(hvd):
    """Record the calls of Horovod: ``[name, number of tensors, dtype, scale]``."""
    calls = []
    one, grouped = hvd.allreduce_, hvd.grouped_allreduce_

    def note(tensors, options):
        dtype = np.dtype(tensors[0].dtype).name
        calls.append([options["name"], len(tensors), dtype, options["prescale_factor"]])

    def allreduce_(tensor, **options):
        note([tensor], options)
        return one(tensor, **options)

    def grouped_allreduce_(tensors, **options):
        note(tensors, options)
        return grouped(tensors=tensors, **options)

    hvd.allreduce_, hvd.grouped_allreduce_ = allreduce_, grouped_allreduce_
    return calls


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))
