"""A trainer of a small network, to be shown."""

from multitrainer import MultiLRTrainer
from support import mlp


def build_trainer(*entries, net=None, **params):
    """Return a network, and a trainer whose groups are what ``entries`` make of it; ``params`` are the optimizer's."""
    net = net or mlp()
    params = params if "lr_scheduler" in params else {"learning_rate": 0.1, **params}
    groups = [entry(net) for entry in entries]
    groups = [group for entry in groups for group in (entry if isinstance(entry, list) else [entry])]
    return net, MultiLRTrainer(groups, "sgd", {"wd": 0.01, **params})
