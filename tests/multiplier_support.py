"""A small network with its trainer, and the ways to set a multiplier."""

from multitrainer import MultiLRTrainer
from support import CONTEXTS, batches, mlp, moved, snapshot, train, weights

STORES = [None, {"update_on_kvstore": True}, {"update_on_kvstore": False}]


def build(spec=lambda net: net, optimizer="sgd", store=None, **params):
    net = mlp(CONTEXTS if store else None)
    trainer = MultiLRTrainer(spec(net), optimizer, {"learning_rate": 0.1, **params}, **(store or {}))
    return net, trainer


def changed_by(net, trainer, store=None, count=1):
    before = snapshot(net)
    train(net, trainer, batches(count), CONTEXTS if store else None)
    return weights(moved(before, snapshot(net)))


FIRST_LAYER = {"net_dense0_weight", "net_dense0_bias"}
ALL_WEIGHTS = FIRST_LAYER | {"net_batchnorm0_gamma", "net_batchnorm0_beta", "net_dense1_weight", "net_dense1_bias"}

# Each function sets the multiplier of the first layer.
WAYS_TO_SET = {
    "trainer.set_lr_mult by Block": lambda net, trainer, x: trainer.set_lr_mult({net[0]: x}),
    "trainer.set_lr_mult by name": lambda net, trainer, x: trainer.set_lr_mult(dict.fromkeys(FIRST_LAYER, x)),
    "param.lr_mult": lambda net, trainer, x: [setattr(p, "lr_mult", x) for p in (net[0].weight, net[0].bias)],
    "setattr": lambda net, trainer, x: net[0].collect_params().setattr("lr_mult", x),
    "optimizer.set_lr_mult": lambda net, trainer, x: trainer.optimizer.set_lr_mult(dict.fromkeys(FIRST_LAYER, x)),
    "optimizer.set_lr_mult by index": lambda net, trainer, x: trainer.optimizer.set_lr_mult(
        {trainer._param2idx[name]: x for name in FIRST_LAYER}
    ),
    "optimizer.lr_mult": lambda net, trainer, x: trainer.optimizer.lr_mult.update(dict.fromkeys(FIRST_LAYER, x)),
}
