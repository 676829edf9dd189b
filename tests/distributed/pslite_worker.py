"""One worker of a ps-lite cluster: ``pslite_worker.py CASE FOLDER`` trains, and writes every step to FOLDER."""

# isort: off
import multitrainer
import mxnet as mx

# isort: on
import json
import os
import pathlib
import sys
import traceback

import numpy as np
from mxnet import autograd, gluon

from multitrainer._mxnet.trainer_stores import TrainerStore

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from support import CONTEXTS, convolution, mlp, snapshot

OPTIONS = ("update_on_kvstore", "compression_params", "max_grad_norm", "accumulate")
CASE, FOLDER = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
INDEX, WORKERS = int(os.environ.get("WORKER_INDEX", "0")), int(os.environ.get("DMLC_NUM_WORKER", "1"))


def main():
    global INDEX
    ctx = CONTEXTS if CASE.get("contexts") == 2 else [mx.cpu(0)]
    net = mlp(ctx, batchnorm=CASE.get("batchnorm", False)) if not CASE.get("convolution") else convolution()
    if CASE.get("layers") == 3:  # the third one is not called
        net.add(gluon.nn.Dense(2, in_units=2, prefix="net_dense2_"))
        net[2].initialize()
        net.hybrid_forward = lambda _, x: net[1](net[0](x))
    kv = CASE["kvstore"]
    if CASE.get("ready"):
        kv = mx.kv.create(kv)
        INDEX = kv.rank  # not always the order in which the workers were started
        if kv.rank and CASE["ready"] != "same weights":  # those of rank 0 must win
            for param in net.collect_params().values():
                param.set_data(param.data(ctx[0]) + 1)
    trainer = make_trainer(net, kv)
    average = multitrainer.WeightAverage(trainer, CASE["average"]) if "average" in CASE else None
    history, errors, figures, values = {}, [], [], count_values(kv)
    if CASE.get("figures"):
        trainer.update_ratios()
    if "resume" in CASE:
        net.load_parameters(str(pathlib.Path(CASE["resume"]) / "net"), ctx=ctx)
        trainer.load_states(pathlib.Path(CASE["resume"]) / "states")
    for step in range(CASE.get("first", 0), CASE.get("steps", 3)):
        if step == CASE.get("save_at"):
            save(net, trainer, errors)
        known_errors = len(errors)
        change(step, net, trainer, errors)
        try:
            if len(errors) == known_errors or not CASE.get("no_step_after_errors"):
                train(step, net, trainer, ctx)
        except (RuntimeError, UserWarning) as error:
            errors.append([step, type(error).__name__, str(error)])
            if CASE.get("ends_at_error"):
                break
        history[step] = snapshot(net)
        if average is not None:
            history[step].update(averages(net, average))
        if CASE.get("figures"):
            figures.append([norms(trainer, errors), trainer.update_ratios()])
    mx.nd.waitall()
    arrays = {f"{step}/{name}": array for step, arrays in history.items() for name, array in arrays.items()}
    np.savez(FOLDER / f"rank{INDEX}.npz", **arrays)
    about = {"errors": errors, "update_on_kvstore": bool(trainer._update_on_kvstore), "frozen": frozen(net)}
    about["figures"] = figures
    about["values"] = values
    (FOLDER / f"rank{INDEX}.json").write_text(json.dumps(about))
    if trainer._kvstore is not None:
        trainer._kvstore._barrier()  # no worker ends while another still pushes


def count_values(kv):
    """Return a list that grows by the number of values that this rank sends in each exchange with the others."""
    values = []

    def counted(pushpull):
        def counting(*args, **options):
            key, value = args[1:3] if isinstance(args[0], TrainerStore) else args[:2]
            if isinstance(key, int):  # the names are exchanged once
                values.append(sum(array.size for array in (value if isinstance(value, list) else [value])))
            pushpull(*args, **options)

        return counting

    if CASE.get("ready"):
        kv.pushpull = counted(kv.pushpull)  # if the servers update
        TrainerStore.pushpull = counted(TrainerStore.pushpull)
    return values


def make_trainer(net, kv):
    kind = gluon.Trainer if CASE.get("stock") else multitrainer.MultiLRTrainer
    for path, multiplier in CASE.get("on_parameters", {}).items():
        net[int(path)].collect_params().setattr("lr_mult", multiplier)
    spec = net.collect_params()
    if not CASE.get("stock"):
        known = net if "built_on" not in CASE else net[CASE["built_on"]]
        spec = [known, *((net[int(path)], multiplier) for path, multiplier in CASE.get("groups", {}).items())]
        for path, (optimizer, params) in CASE.get("own", {}).items():
            spec.append(multitrainer.ParamGroup(net[int(path)], optimizer=optimizer, optimizer_params=params))
        if "schedule" in CASE:
            spec.append((net[CASE["schedule"]], lambda num_update: 1 / num_update))
    options = {key: CASE[key] for key in OPTIONS if key in CASE}
    if INDEX in CASE.get("accumulate_on", {}).get("ranks", ()):
        options["accumulate"] = CASE["accumulate_on"]["steps"]
    optimizer = CASE.get("optimizer", "sgd")
    params = {"learning_rate": 0.05, **CASE.get("optimizer_params", {})}
    if "lr_scheduler" in CASE:
        params["lr_scheduler"] = mx.lr_scheduler.PolyScheduler(20, base_lr=CASE["lr_scheduler"], pwr=1)
    trainer = kind(spec, optimizer, params, kvstore=kv, **options)
    if "optimizer_set_lr_mult" in CASE:
        trainer.optimizer.set_lr_mult(CASE["optimizer_set_lr_mult"])
    return trainer


def save(net, trainer, errors):
    """Save on every rank under another name, and load; then save on rank 0 alone, as users do."""
    rank = INDEX if trainer._kvstore is None else trainer._kvstore.rank
    if rank == 0:
        net.save_parameters(str(FOLDER / "net"))
    name = FOLDER / ("states" if rank == 0 else f"states of rank {rank}")
    calls = [("save", lambda: trainer.save_states(name)), ("load", lambda: load_after_save(trainer))]
    if rank == 0:
        calls.append(("save", lambda: trainer.save_states(FOLDER / "states of rank 0 alone")))
    for what, call in calls:
        try:
            call()
        except (RuntimeError, OSError) as error:
            errors.append([what, type(error).__name__, str(error)])


def load_after_save(trainer):
    if trainer._kvstore is not None:
        trainer._kvstore._barrier()  # until rank 0 has written
    trainer.load_states(FOLDER / "states")


def change(step, net, trainer, errors):
    """Make the changes of the case that come before ``step``, by a method or an attribute of trainer or Parameters."""
    for at, setter, path, value, *ranks in CASE.get("changes", []):
        if at != step or (ranks and INDEX not in ranks):
            continue
        try:
            if setter == "assign":
                net[path].collect_params().setattr("lr_mult", value)
            elif setter == "set_learning_rate":
                trainer.set_learning_rate(value)
            elif setter == "optimizer.lr":
                trainer.optimizer.lr = value
            elif setter.startswith("optimizer."):
                setattr(trainer.optimizer, path, value)
            elif setter == "lr_scheduler":
                trainer.optimizer.lr_scheduler = mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=value)
            elif setter == "schedule":
                trainer.set_lr_mult({net[path]: lambda num_update, value=value: value})
            elif setter == "add":
                trainer.add([(net[path], value)])
            else:
                getattr(trainer, setter)({net[path]: value})
        except RuntimeError as error:
            errors.append([step, type(error).__name__, str(error)])


def train(step, net, trainer, ctx):
    """Make one step on this rank's share of a batch, which is the same for any number of workers."""
    rng = np.random.RandomState(step)
    x, y = rng.randn(8, 3).astype("float32"), rng.randn(8, 2).astype("float32")
    share = slice(8 // WORKERS * INDEX, 8 // WORKERS * (INDEX + 1))
    parts = zip(gluon.utils.split_and_load(x[share], ctx), gluon.utils.split_and_load(y[share], ctx))
    with autograd.record():
        losses = [gluon.loss.L2Loss()(net(a), b) for a, b in parts]
    if [step, INDEX] not in CASE.get("without_backward", []):
        autograd.backward(losses)
    for at, setter, path, value in CASE.get("changes_after_backward", []):
        if at == step:
            getattr(trainer, setter)({net[path]: value})
    if CASE.get("predicting") and step == 0:
        mx.nd.waitall()
        net(mx.nd.ones((50_000, 3)))  # still runs when the call returns
    trainer.step(CASE.get("batch_sizes", {}).get(str(step), 8), ignore_stale_grad="without_backward" in CASE)
    for at, *ranks in CASE.get("flush_after", []):
        if at == step and (not ranks or INDEX in ranks):
            trainer.flush()


def averages(net, average):
    """Average the weights, save and load the averages; return those that were loaded."""
    average.update()
    rank = average._trainer._kvstore.rank
    average.save(FOLDER / ("average" if rank == 0 else f"average of rank {rank}"))
    average._trainer._kvstore._barrier()  # until rank 0 has written
    loaded = multitrainer.WeightAverage(average._trainer)
    loaded.load(FOLDER / "average")
    average._trainer._kvstore._barrier()  # until all ranks have read
    with loaded.applied():
        return {f"average {name}": array for name, array in snapshot(net).items()}


def norms(trainer, errors):
    """Return the norms of the gradients by group, and of all of them."""
    try:
        return {**trainer.grad_norms(), "total": trainer.total_grad_norm()}
    except RuntimeError as error:
        errors.append(["norms", type(error).__name__, str(error)])
        return {}


def frozen(net):
    return sorted(name for name, param in net.collect_params().items() if param.grad_req == "null")


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # at a normal exit, an MXNet worker waits for the others
