"""One rank of a Horovod job that trains a GAN: ``horovod_gan_worker.py CASE FOLDER``."""

# isort: off
import multitrainer  # noqa: F401 (before MXNet, which it lets import)
import mxnet as mx

# isort: on
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import gan


def main(case, folder):
    import horovod.mxnet as hvd

    from multitrainer.horovod import DistributedMultiLRTrainer

    hvd.init()
    (folder / f"pid{hvd.rank()}").write_text(str(os.getpid()))
    size = gan.BATCH // hvd.size()
    share = slice(size * hvd.rank(), size * (hvd.rank() + 1))
    networks = gan.make_networks(shift=hvd.rank())  # the weights of rank 0 must win
    trainers = {
        name: DistributedMultiLRTrainer(net, *gan.OPTIMIZER, prefix=prefix)
        for (name, net), prefix in zip(networks.items(), case["prefixes"])
    }
    assert [trainer._prefix for trainer in trainers.values()] == case["names"]
    change = gan.freeze_and_unfreeze(networks, trainers)
    gan.save(folder / f"rank{hvd.rank()}.npz", gan.train(networks, trainers, 5, share, size, change))
    exchange_at_once(hvd, trainers)
    hvd.allreduce(mx.nd.ones(1), name="end").wait_to_read()


def exchange_at_once(hvd, trainers):
    """Offer the gradients of both trainers before the other ranks offer any."""
    gradients = [param.grad() for trainer in trainers.values() for param in trainer._params]
    for number, gradient in enumerate(gradients):
        gradient[:] = hvd.rank() + number
    mx.nd.waitall()
    for trainer in trainers.values() if hvd.rank() == 0 else reversed(list(trainers.values())):
        hvd.DistributedTrainer._allreduce_grads(trainer)  # without our comparison, which waits for the other ranks
    mx.nd.waitall()
    for number, gradient in enumerate(gradients):
        sums = sum(rank + number for rank in range(hvd.size()))  # the optimizer divides them
        assert (gradient.asnumpy() == sums).all(), number


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))
