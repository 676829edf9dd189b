"""One rank that broadcasts, sums and trains: ``ranks_worker.py KVSTORE FOLDER`` writes the results to FOLDER."""

# isort: off
import multitrainer
import mxnet as mx

# isort: on
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from multitrainer_cli.interrupts import Interrupts
from multitrainer_cli.ranks.launch import run_distributed
from multitrainer_cli.training.loop import fit
from support import mlp, snapshot


def work(ranks):
    net = mlp()
    for param in net.collect_params().values():
        param.set_data(param.data() + ranks.rank)
    ranks.broadcast_parameters(net.collect_params().values())
    sums = {f"sum{size}": ranks.sum(np.full(size, ranks.rank + 1.0)) for size in (1, 3, 3_000_000)}
    np.savez(folder / f"before{ranks.rank}.npz", **snapshot(net), **sums)
    trainer = ranks.make_trainer([multitrainer.ParamGroup(net)], "sgd", {"learning_rate": 0.01})
    data = [(mx.nd.random.normal(ranks.rank, shape=(4, 3)), mx.nd.array([0, 1, 0, 1])) for _ in range(3)]
    with Interrupts() as interrupts:
        rows = list(fit(net, trainer, data, data, [mx.cpu()], 2, interrupts, ranks=ranks))
    losses = np.array([row["train_loss"] for row in rows])
    np.savez(folder / f"after{ranks.rank}.npz", **snapshot(net), losses=losses)
    return 0


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[2])
    sys.exit(run_distributed(sys.argv[1], work))
