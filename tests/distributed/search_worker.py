"""One rank that searches for a learning rate: ``search_worker.py KIND FOLDER [unequal|without]`` writes to FOLDER.

KIND is 'horovod', 'stock-horovod' or a kvstore. The losses of rank 1 would end the search earlier than those of rank 0.
"""

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

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from search_support import batches, everything, make_step
from support import mlp, train

KIND, FOLDER, HOW = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "equal"


def make_trainer(net):
    """Return the trainer, the rank, and what all ranks wait for at the end."""
    groups, settings = [net, (net[0], 0.1)], {"learning_rate": 0.05, "momentum": 0.9}
    if "horovod" not in KIND:
        store = mx.kv.create(KIND)
        return multitrainer.MultiLRTrainer(groups, "sgd", settings, kvstore=store), store.rank, store._barrier
    import horovod.mxnet as hvd

    hvd.init()
    if KIND == "horovod":
        from multitrainer.horovod import DistributedMultiLRTrainer as Kind
    else:

        class Kind(multitrainer.MultiLRTrainer, hvd.DistributedTrainer):
            pass

    return Kind(groups, "sgd", settings), hvd.rank(), lambda: hvd.allreduce(mx.nd.ones(1), name="end").wait_to_read()


def main():
    net = mlp(batchnorm=False)
    trainer, rank, wait = make_trainer(net)
    data = batches(3, seed=5 + rank)
    train(net, trainer, data)
    train_step, count, about = make_step(net, trainer), 0, {}

    def step_with_unlike_losses(batch):
        nonlocal count
        count += 1
        loss = train_step(batch).mean().asscalar()
        return loss * (100 if rank == 1 and count > 40 else 1)

    if HOW != "without":
        before = everything(trainer, net)
        source = iter(data * (20 if rank == 0 else 4)) if HOW == "unequal" else data
        try:
            found = multitrainer.find_learning_rate(trainer, step_with_unlike_losses, source)
            about.update(rates=found.rates.tolist(), losses=found.losses.tolist(), made=count)
        except (RuntimeError, ValueError) as error:
            about["error"] = str(error)
        about["same"] = everything(trainer, net) == before
    history = train(net, trainer, batches(3, seed=9 + rank))
    np.savez(FOLDER / f"rank{rank}.npz", **history[-1], **{f"first_{k}": v for k, v in history[0].items()})
    (FOLDER / f"rank{rank}.json").write_text(json.dumps(about))
    wait()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # at a normal exit, an MXNet worker waits for the others
