"""Programs on which the trainer once differed from the reference: random ones, shortened."""

from programs import Program

STATIC = {"static_alloc": True}
STATIC_SHAPE = {"static_alloc": True, "static_shape": True}
MANY = tuple(enumerate(["two dense"] * 5))  # enough for the fused update
UNFREEZE = (
    ("step", 0),
    ("step", 0),
    ("set", 0, "trainer", ("net_s0",), 0),
    ("step", 0),
    ("set", 0, "trainer", ("net_s0",), 1),
)

REGRESSIONS = {
    "weight of a Dense frozen alone": Program(
        stages=((3, "dense"),),
        ops=(
            ("set", 0, "trainer", ("net_s3_dense0_weight",), 0),
            ("backward", 566, False),
        ),
    ),
    "weight of an LSTMCell frozen alone": Program(
        stages=((2, "lstm cell"),),
        ops=(
            ("set", 0, "trainer", ("net_s2_lstm0_h2h_weight",), 0),
            ("backward", 827, False),
        ),
    ),
    "embedding frozen, its weight tied to the output": Program(
        stages=(),
        heads=0,
        ops=(
            ("set", 0, "attribute", ("net_embedding0",), 0),
            ("step", 0),
            ("step", 0),
        ),
    ),
    "frozen and unfrozen in a static trace": Program(
        stages=(),
        mode=STATIC_SHAPE,
        ops=(
            ("step", 0),
            ("set", 0, "trainer", ("net_head_dense0_weight",), 0),
            ("set", 0, "trainer", ("net_head_dense0_weight",), 1),
            ("backward", 875, False),
        ),
    ),
    "engine fails in the first step after an unfreeze": Program(
        stages=MANY,
        ops=(*UNFREEZE, ("engine error", 0, 3), ("step", 0)),
    ),
    "Ctrl-C in the first step after an unfreeze": Program(
        stages=MANY,
        ops=(*UNFREEZE, ("interrupt", 0, 3, 300), ("step", 0)),
    ),
    "order of random numbers around a frozen layer": Program(
        stages=((0, "memory"),),
        mode={},
        ops=(
            ("set", 0, "trainer", ("net_s0_dense0",), 0),
            ("backward", 264, False),
        ),
    ),
    "gradient attached to a frozen weight": Program(
        stages=((0, "own"),),
        mode={},
        ops=(
            ("step", 0),
            ("set", 0, "trainer", ("net_s0_own0",), 0),
            ("attach", "net_s0_own0"),
            ("backward", 677, False),
        ),
    ),
    "sum with what comes from a frozen layer, in a static trace": Program(
        stages=((0, "sum"), (2, "sum")),
        mode=STATIC,
        ops=(
            ("set", 0, "trainer", ("net_s0_dense0",), 0),
            ("backward", 941, False),
        ),
    ),
    "memory behind a frozen layer, in a static trace": Program(
        stages=((1, "gru cell"), (2, "memory")),
        mode=STATIC,
        entries=(("net_s1_unrolled0", 0),),
        ops=(("step", 0),),
    ),
    "update count after functions that freeze in turn": Program(
        stages=((0, "dense"),),
        ops=(
            ("freeze", "net_s0"),
            ("step", 0),
            ("step", 0),
            ("unfreeze", "net_s0"),
            ("freeze", "net_head"),
            ("step", 0),
            ("unfreeze", "net_head"),
            ("step", 0),
            ("step", 0),
        ),
    ),
    "update count after another trainer that freezes in turn": Program(
        stages=((0, "dense"),),
        trainers="two of the same",
        ops=(
            ("set", 1, "trainer", ("net_s0",), 0),
            ("step", 0),
            ("set", 1, "trainer", ("net_s0",), 1),
            ("set", 1, "trainer", ("net_head",), 0),
            ("step", 0),
            ("set", 1, "trainer", ("net_head",), 1),
            ("step", 0),
        ),
    ),
    "grad_req set while frozen": Program(
        stages=((0, "dense"),),
        ops=(
            ("set", 0, "trainer", ("net_s0",), 0),
            ("backward", 1, False),
            ("grad_req", "net_s0", "add"),
            ("step", 0),
            ("set", 0, "trainer", ("net_s0",), 1),
            ("backward", 2, False),
            ("backward", 3, False),
            ("step", 0),
        ),
    ),
    "copy after the fused update": Program(
        stages=MANY,
        ops=(
            ("step", 0),
            ("step", 0),
            ("copy", "deepcopy", 616),
            ("copy", "pickle", 616),
        ),
    ),
    "copy with schedules": Program(
        stages=((0, "borrowing"), (1, "two dense")),
        trainers="of the Parameters",
        ops=(
            ("set", 0, "trainer", ("net_s0_borrowing0_dense0_bias", "net_s1_dense0"), ("frozen until", 6)),
            ("step", 0),
            ("copy", "deepcopy", 729),
        ),
    ),
    "unfreeze() between backward and step": Program(
        stages=((1, "layernorm"),),
        ops=(
            ("freeze", "net_s1_dense0"),
            ("backward", 766, True),
            ("unfreeze", "net_s1_dense0"),
            ("step", 0),
        ),
    ),
    "unfreeze() of a bias in a frozen layer": Program(
        stages=((5, "gru cell"),),
        ops=(
            ("set", 0, "trainer", ("net_head",), 0),
            ("unfreeze", "net_head_dense0_bias"),
            ("backward", 991, False),
        ),
    ),
    "optimizer.set_lr_mult back after freeze()": Program(
        stages=((0, "dense"),),
        ops=(
            ("freeze", "net_s0_dense0_bias"),
            ("set", 0, "optimizer", ("net_s0",), 1),
            ("step", 0),
        ),
    ),
    "frozen by one trainer, unfrozen by assignment, stepped by another": Program(
        stages=((0, "dense"),),
        trainers="two of the same",
        ops=(
            ("set", 0, "attribute", ("net_s0_dense0",), 0),
            ("step", 0),
            ("set", 0, "attribute", ("net_s0_dense0",), 1),
            ("step", 1),
            ("step", 1),
        ),
    ),
    "unfrozen between backward and step, stepped by another trainer": Program(
        stages=((2, "layernorm"),),
        trainers="two of the same",
        ops=(
            ("set", 1, "trainer", ("net_head_dense0",), 0),
            ("backward", 986, False),
            ("set", 1, "trainer", ("net_head_dense0",), 1),
            ("step", 0),
        ),
    ),
    "multiplier of another trainer from before a freeze": Program(
        stages=((1, "two dense"),),
        trainers="two of the same",
        ops=(
            ("set", 0, "trainer", ("net_s1_dense0_weight",), 2),
            ("set", 1, "names", ("net_s1_dense0_weight",), 0),
            ("step", 1),
            ("unfreeze", "net_s1_dense0_weight"),
        ),
    ),
}
