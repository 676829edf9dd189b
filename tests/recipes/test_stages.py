"""`stages`: in the order that a network runs them, each parameter once; what cannot be ordered is an error."""

import os
import re
from collections import Counter

import mxnet as mx
import pytest
from gluoncv import model_zoo
from mxnet import gluon
from mxnet.gluon import nn, rnn

from multitrainer import freeze, stages
from multitrainer.recipes.stages import layers_by_stage
from support import mlp

# -- GluonCV's model zoo ----------------------------------------------------------------------------------------------

# Each name that the zoo lists is of the first family that it matches.
FAMILIES = {
    "quantized": r".*_int8",
    "action": r".*_(kinetics[47]00|hmdb51|ucf101|sthsthv2)|(i3d|resnet\d+|slowfast).*(?<!rcnn)_custom",
    "detection": r"(ssd|yolo3|faster_rcnn|mask_rcnn|custom_\w+_rcnn|doublehead_rcnn|center_net)_.*",
    "segmentation": r"(fcn|psp|deeplab|danet|icnet|fastscnn)_.*|hrnet_\w+_s",
    "pose": r"(simple_pose|mobile_pose|alpha_pose)_.*",
    "depth": r"monodepth2_.*",
    "tracking": r"siamrpn_.*",
    "classification": r"(alexnet|cifar_|darknet|densenet|dla|googlenet|hrnet|inceptionv3|mobilenet|nasnet|"
    r"residualatten|resne[sx]?t|se_|senet|shufflenet|squeezenet|vgg|xception).*",
}
COUNTS = {"quantized": 22, "action": 54, "detection": 76, "segmentation": 31, "pose": 14, "depth": 5, "tracking": 1}

# These fetch weights while they are built, whatever is said about pretraining; the rest of "action" does not.
DOWNLOADED = {
    "quantized": r"(?!mobilenet1.0|resnet50_v1_|simple_pose).*",
    "action": r"(inceptionv[13]|resnet\d+_v1b|vgg16)_.*|i3d_resnet50_v1_(custom|hmdb51|ucf101)|\w+resnet50_custom",
}
BRANCHED = r"(icnet|slowfast|doublehead_rcnn)_.*"
BROKEN = r"custom_faster_rcnn_fpn"  # it cannot be run at all: GluonCV's forward pass reads a variable it never set


def family(name):
    return next(kind for kind, pattern in FAMILIES.items() if re.fullmatch(pattern, name))


def is_downloaded(name):
    return bool(re.fullmatch(DOWNLOADED.get(family(name), ""), name))


def build(name):
    kind = family(name)
    options = {} if kind in ("classification", "quantized") or name.startswith("hrnet") else {"pretrained_base": False}
    if kind == "detection" and "custom" in name:
        options["classes"] = ["one", "other"]
    return model_zoo.get_model(name, pretrained=False, **options)


def structure(net):
    """Return the number of layers in each stage."""
    return [len(stage) for stage in layers_by_stage(net)]


def held(blocks):
    """Return how often each Parameter is held."""
    return Counter(param for block in blocks for param in block.collect_params().values())


def run_order(net):
    """Return the Blocks inside ``net`` in the order in which they are called."""
    calls = {}
    handles = []

    def watch(block):
        handles.append(block.register_forward_pre_hook(lambda block, _: calls.setdefault(block, len(calls))))

    net.apply(watch)
    with mx.name.NameManager():
        net(mx.sym.var("data"))
    for handle in handles:
        handle.detach()
    return calls


def with_parameters(block):
    found = []
    block.apply(lambda inner: found.append(inner) if inner.params.keys() else None)
    return found


def check(net, in_calls=True):
    """Check what holds of every network's stages; without ``in_calls``, all but that they are called in this order."""
    found = stages(net)
    assert held(found) == dict.fromkeys(net.collect_params().values(), 1)
    assert all(stage.collect_params().keys() for stage in found)
    if in_calls:
        calls = run_order(net)
        ends = [max(calls.get(block, -1) for block in with_parameters(stage)) for stage in found[:-1]]
        assert ends == sorted(set(ends))
        assert not found[:-1] or max(calls.get(block, 0) for block in with_parameters(found[-1])) > ends[0]


def check_zoo(name):
    net = build(name)
    for names, message in [
        (BRANCHED, r"cannot be ordered: .* comes before the other; pass its Blocks"),
        (BROKEN, r"cannot be ordered, for no symbol runs through it \(UnboundLocalError.*; pass its Blocks"),
    ]:
        if re.fullmatch(names, name):
            with pytest.raises(ValueError, match=message):
                stages(net)
            return
    traced_as_one = family(name) == "quantized" or name.endswith("_gn") or "siamrpn" in name
    symbol_inside = isinstance(getattr(net, "features", None), gluon.SymbolBlock)
    check(net, in_calls=not (traced_as_one or symbol_inside))


STRUCTURES = {
    "alexnet": [1] * 8,
    "vgg11_bn": [1] * 11,
    "mobilenet0.25": [1] * 28,
    "mobilenetv2_0.5": [1] * 20,
    "squeezenet1.1": [1, 2, 2, 2, 2, 2, 2, 2, 2, 1],
    "resnet18_v1": [1, 2, 2, 2, 2, 1],
    "resnet18_v2": [1, 2, 2, 2, 2, 1],
    "resnet50_v1b": [1, 3, 4, 6, 3, 1],
    "resnet50_v1b_gn": [1, 3, 4, 6, 3, 1],  # no symbol runs through its GroupNorm
    "cifar_resnet20_v1": [1, 3, 3, 3, 1],
    "densenet121": [1, 6, 13, 25, 17, 1],
    "mobilenet1.0_int8": [1] * 28,  # a symbol
    "fcn_resnet50_voc": [3, 3, 4, 6, 3, 1],
    "psp_resnet50_ade": [3, 3, 4, 6, 3, 1],
    "deeplab_resnet50_ade": [3, 3, 4, 6, 3, 1],
    "ssd_300_vgg16_atrous_voc": [2, 2, 3, 3, 3, 2, 1, 1],
    "ssd_512_resnet50_v1_voc": [1, 1, 1, 1, 1, 8, 1],  # its features are a symbol
    "yolo3_darknet53_voc": [15, 9, 5, 5, 1],
    "faster_rcnn_resnet50_v1b_voc": [1, 3, 4, 6, 3, 1],
    "center_net_resnet18_v1b_voc": [1, 2, 2, 2, 2, 6, 1],
}
# One of each class of network that the zoo has beside these, the cheapest to build.
OTHERS = [
    "c3d_kinetics400",
    "cifar_residualattentionnet56",
    "cifar_resnet20_v2",
    "cifar_resnext29_16x64d",
    "cifar_wideresnet16_10",
    "custom_mask_rcnn_fpn",
    "danet_resnet50_citys",
    "darknet53",
    "deeplab_v3b_plus_wideresnet_citys",
    "dla34",
    "center_net_dla34_voc",
    "fastscnn_citys",
    "faster_rcnn_fpn_resnet50_v1b_coco",
    "googlenet",
    "hrnet_w18_small_v1_c",
    "hrnet_w18_small_v1_s",
    "i3d_inceptionv1_kinetics400",
    "i3d_resnet50_v1_kinetics400",
    "icnet_resnet50_citys",
    "inceptionv3",
    "mask_rcnn_resnet18_v1b_coco",
    "mobile_pose_mobilenet1.0",
    "mobilenetv3_small",
    "monodepth2_resnet18_posenet_kitti_mono_640x192",
    "nasnet_4_1056",
    "monodepth2_resnet18_kitti_mono_640x192",
    "p3d_resnet50_kinetics400",
    "r2plus1d_resnet18_kinetics400",
    "residualattentionnet56",
    "resnest14",
    "resnet50_v1_int8",
    "resnext50_32x4d",
    "se_resnet18_v1",
    "senet_154",
    "shufflenet_v1",
    "shufflenet_v2",
    "simple_pose_resnet18_v1b",
    "siamrpn_alexnet_v2_otb15",
    "slowfast_4x16_resnet50_kinetics400",
    "ssd_300_mobilenet0.25_voc",
    "squeezenet1.0",
    "vgg16",
    "xception",
    "xception71",
    "yolo3_mobilenet0.25_custom",
]


def test_every_name_of_the_zoo_is_of_one_family():
    names = model_zoo.get_model_list()
    counts = Counter(map(family, names))
    assert counts == {**COUNTS, "classification": 129}
    assert sum(map(is_downloaded, names)) == 45
    assert {*STRUCTURES, *OTHERS} <= set(names)


FAST = ["alexnet", "squeezenet1.1", "resnet18_v1", "resnet50_v1b", "cifar_resnet20_v1", "fcn_resnet50_voc"]


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STRUCTURES]
)
def test_zoo(name):
    assert structure(build(name)) == STRUCTURES[name]
    check_zoo(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_zoo_one_of_each_class(name):
    check_zoo(name)


@pytest.mark.slow
@pytest.mark.skipif("MULTITRAINER_WHOLE_ZOO" not in os.environ, reason="takes minutes; set MULTITRAINER_WHOLE_ZOO=1")
@pytest.mark.parametrize("name", [name for name in model_zoo.get_model_list() if not is_downloaded(name)])
def test_whole_zoo(name):
    check_zoo(name)


# -- networks of one's own --------------------------------------------------------------------------------------------


def sequential(*layers):
    net = nn.HybridSequential()
    net.add(*layers)
    return net


class Net(gluon.HybridBlock):
    """Layers by name, registered in the order given, and what to do with them."""

    def __init__(self, run, layers, **params):
        super().__init__()
        self._run = run
        with self.name_scope():
            for name, layer in layers.items():
                setattr(self, name, layer)
            for name, shape in params.items():
                setattr(self, name, self.params.get(name, shape=shape))

    def hybrid_forward(self, op, x, **params):
        return self._run(self, op, x, **params)


class Scaled(gluon.HybridBlock):
    """A layer that no symbol can run: it asks for a shape."""

    def __init__(self):
        super().__init__()
        self.scale = self.params.get("scale", shape=(1,))

    def hybrid_forward(self, op, x, scale):
        return x * float(x.shape[0]) * scale


class TestOrder:
    @pytest.mark.parametrize("kind", [nn.Sequential, nn.HybridSequential])
    def test_a_row_of_layers_has_a_stage_for_each(self, kind):
        net = kind()
        net.add(nn.Conv2D(4, 3), nn.BatchNorm(), nn.PReLU(), nn.MaxPool2D(), nn.Dense(3), nn.Dropout(0.5), nn.Dense(2))
        first, *rest = stages(net)
        assert held([first]) == held([net[0], net[1], net[2]])
        assert rest == [net[4], net[6]]
        check(net)

    def test_layers_before_and_after_the_layer_they_normalize(self):
        dense = [nn.Dense(3) for _ in range(3)]
        net = sequential(nn.BatchNorm(), dense[0], dense[1], nn.LayerNorm(), dense[2], nn.BatchNorm())
        assert [held([stage]) for stage in stages(net)] == [held(net[:2]), held(net[2:4]), held(net[4:])]

    def test_registration_is_not_the_order(self):
        def run(net, op, x):
            return net.last(net.middle(net.first(x)))

        layers = [nn.Dense(units) for units in (1, 2, 3)]
        net = Net(run, {"last": layers[0], "first": layers[1], "middle": layers[2]})
        assert stages(net) == [layers[1], layers[2], layers[0]]

    @pytest.mark.parametrize("layer", [rnn.LSTM, rnn.GRU, rnn.RNN])
    def test_rnn(self, layer):
        net = sequential(nn.Embedding(10, 4), layer(5, num_layers=2, bidirectional=True), nn.Dense(2))
        assert stages(net) == [net[0], net[1], net[2]]
        check(net)

    @pytest.mark.parametrize("kind", [rnn.SequentialRNNCell, rnn.HybridSequentialRNNCell])
    def test_rnn_cells(self, kind):
        net = kind()
        for cell in (rnn.LSTMCell(4), rnn.DropoutCell(0.2), rnn.ResidualCell(rnn.GRUCell(4)), rnn.RNNCell(2)):
            net.add(cell)
        assert stages(net) == [net[0], net[2], net[3]]

    def test_a_lone_layer_is_one_stage(self):
        for net in (nn.Dense(2), rnn.LSTM(3), sequential(sequential(nn.Dense(2)))):
            assert [held([stage]) for stage in stages(net)] == [held([net])]

    def test_residual_blocks_are_layers_of_their_stage(self):
        def residual(channels):
            body = sequential(nn.Dense(channels), nn.BatchNorm(), nn.Dense(channels))
            return Net(lambda net, op, x: op.relu(x + net.body(x)), {"body": body})

        body = sequential(residual(4), residual(4), residual(4))
        net = sequential(nn.Dense(4), body, sequential(residual(4), residual(4)), nn.Dense(2))
        assert structure(net) == [1, 3, 2, 1]
        assert stages(net) == list(net)
        assert structure(body) == [1, 1, 1]
        net = sequential(nn.Dense(4), body, nn.Dense(4), sequential(residual(4), residual(4)), nn.Dense(2))
        assert structure(net) == [1, 3, 3, 1]  # one layer between two rows goes with the second

    def test_parts_of_ones_own(self):
        """Parameters that belong to no layer come where they are used."""

        def run(net, op, x, position, scale):
            return net.output(op.broadcast_mul(net.middle(op.broadcast_add(net.embedding(x), position)), scale))

        layers = {"output": nn.Dense(2), "middle": nn.Dense(3, flatten=False), "embedding": nn.Embedding(9, 3)}
        net = Net(run, layers, position=(1, 1, 3), scale=(1, 1, 3))
        found = [list(stage.collect_params().values()) for stage in stages(net)]
        assert found == [
            [net.embedding.weight],
            [net.position],
            [net.middle.weight, net.middle.bias],
            [net.scale],
            [net.output.weight, net.output.bias],
        ]

    def test_outputs_side_by_side_are_the_last_stage(self):
        def run(net, op, x):
            x = net.stem(x)
            return net.head(net.body(x)), net.auxiliary(x)

        net = Net(run, {name: nn.Dense(2) for name in ("auxiliary", "stem", "body", "head")})
        *trunk, last = stages(net)
        assert trunk == [net.stem, net.body]
        assert held([last]) == held([net.head, net.auxiliary])
        assert re.fullmatch(r"Stage\(Dense 'dense\d+', Dense 'dense\d+'\)", repr(last))
        with pytest.raises(NotImplementedError, match="call the network"):
            last(mx.nd.ones((1, 2)))

    def test_what_the_forward_pass_does_not_reach_goes_with_the_output(self):
        net = Net(lambda net, op, x: net.b(net.a(x)), {"idle": nn.Dense(1), "a": nn.Dense(2), "b": nn.Dense(3)})
        first, last = stages(net)
        assert first is net.a
        assert held([last]) == held([net.idle, net.b])

    def test_what_gradients_do_not_pass_orders_nothing_unless_nothing_else_does(self):
        def detector(net, op, x):
            x = net.features(x)
            regions = net.regions(x)
            return regions, net.top(op.broadcast_add(x, op.stop_gradient(regions)))

        net = Net(detector, {name: nn.Dense(2) for name in ("top", "regions", "features")})
        assert held(stages(net)[1:]) == held([net.top, net.regions])
        assert len(stages(net)) == 2
        net = Net(lambda net, op, x: net.b(op.stop_gradient(net.a(x))), {"b": nn.Dense(2), "a": nn.Dense(2)})
        assert stages(net) == [net.a, net.b]


class TestSharing:
    @pytest.mark.parametrize("first", ["embedding", "output"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_tied_weights_are_with_the_layer_that_uses_them_first(self, first, bias):
        embedding = nn.Embedding(9, 3, prefix="tied_")
        output = nn.Dense(9, in_units=3, flatten=False, use_bias=bias, prefix="tied_", params=embedding.params)
        layers = {"embedding": embedding, "output": output, "middle": nn.Dense(3, flatten=False)}
        order = sorted(layers, key=lambda name: name != first)
        net = Net(lambda net, op, x: net.output(net.middle(net.embedding(x))), {name: layers[name] for name in order})
        found = [list(stage.collect_params().values()) for stage in stages(net)]
        assert found[:2] == [[embedding.weight], [net.middle.weight, net.middle.bias]]
        assert found[2:] == ([[output.bias]] if bias else [])

    def test_a_weight_that_two_layers_share(self):
        one = nn.Dense(3, in_units=3, use_bias=False, prefix="tied_")
        other = nn.Dense(3, in_units=3, prefix="tied_", params=one.params)
        first, last = stages(sequential(one, other))
        assert first is one
        assert list(last.collect_params().values()) == [other.bias]

    def test_a_layer_that_runs_twice_comes_where_it_runs_first(self):
        dense = nn.Dense(3, in_units=3)
        net = sequential(dense, nn.Dense(3, in_units=3), dense)
        assert stages(net) == [dense, net[1]]


class TestWhatCannotBeOrdered:
    def test_two_towers(self):
        def run(net, op, x):
            return net.output(net.left(x) + net.right(x))

        net = Net(run, {name: nn.Dense(3) for name in ("left", "right", "output")})
        with pytest.raises(ValueError, match=r"Net 'net\d+' cannot be ordered: neither of Dense 'dense\d+' and Dense "):
            stages(net)
        with pytest.raises(ValueError, match="pass its Blocks, from input to output, instead of the network"):
            stages(sequential(net))

    def test_two_towers_on_one_stem(self):
        def tower():
            return sequential(*(Net(lambda net, op, x: net.a(x), {"a": nn.Dense(2)}) for _ in range(3)))

        def run(net, op, x):
            x = net.stem(x)
            return net.left(x), net.right(x)

        with pytest.raises(ValueError, match="are branches side by side; pass its Blocks"):
            stages(Net(run, {"stem": nn.Dense(2), "left": tower(), "right": tower()}))

    def test_branches_inside_a_stage_are_fine(self):
        branches = gluon.contrib.nn.HybridConcurrent()
        branches.add(nn.Dense(2), nn.Dense(3))
        net = sequential(nn.Dense(2), branches, nn.Dense(1))
        assert stages(net) == list(net)

    def test_layers_that_no_symbol_runs_are_ordered_by_those_around_them(self):
        layers = {"b": nn.Dense(2), "scaled": Scaled(), "a": nn.Dense(3)}
        net = Net(lambda net, op, x: net.b(net.scaled(net.a(x))), layers)
        assert stages(net) == [net.a, net.scaled, net.b]
        assert "forward" not in vars(net.scaled)

    def test_a_sequence_that_no_symbol_runs_is_in_its_own_order(self):
        class Sized(gluon.Block):
            def __init__(self):
                super().__init__()
                self.dense = nn.Dense(2)

            def forward(self, x):
                return self.dense(x[: len(x) // 2])

        net = nn.Sequential()
        net.add(nn.Dense(3), Sized(), nn.Dense(2))
        assert stages(net) == [net[0], net[1], net[2]]
        with pytest.raises(ValueError, match=r"Sized 'sized\d+' cannot be ordered, for no symbol runs .*; pass"):
            stages(net[1])

    def test_what_is_no_network(self):
        with pytest.raises(TypeError, match="expected a network, which is a Block, got 3"):
            stages(3)
        with pytest.raises(ValueError, match="holds no Parameter"):
            stages(nn.Activation("relu"))


class TestNothingIsTouched:
    def test_shapes_stay_deferred_and_no_variable_is_kept(self):
        net = sequential(nn.Conv2D(3, 3), nn.BatchNorm(), nn.Dense(2))
        stages(net)
        assert net[0].weight.shape == (3, 0, 3, 3)
        assert all(param._var is None for param in net.collect_params().values())

    def test_symbols_are_named_as_if_nothing_had_been_traced(self):
        class Doubled(gluon.Block):
            def __init__(self):
                super().__init__()
                self.dense = nn.Dense(2)

            def forward(self, x):
                return self.dense(x * 2)

        def number():
            return int((mx.sym.var("x") * 2).name[len("_mulscalar") :])

        before = number()
        stages(Doubled())
        assert number() == before + 1

    def test_no_hook_runs(self):
        net = mlp()
        ran = []
        net[0].register_forward_pre_hook(lambda *_: ran.append(1))
        net[0].register_forward_hook(lambda *_: ran.append(1))
        stages(net)
        assert not ran
        net(mx.nd.ones((1, 3)))
        assert ran == [1, 1]

    def test_a_traced_network_goes_on_as_before(self):
        net = mlp()
        net.hybridize()
        x = mx.nd.ones((2, 3))
        before = net(x).asnumpy()
        graph = net._cached_graph
        assert len(stages(net)) == 2
        assert net._cached_graph is graph
        assert (net(x).asnumpy() == before).all()

    def test_the_warning_of_an_old_trace_is_not_lost(self):
        """`freeze` watches whether a layer is called since; ordering the network is no call."""
        net = mlp()
        net.hybridize()
        net(mx.nd.ones((2, 3)))
        freeze(net[1])
        watch = net[1]._multitrainer_watch
        stages(net)
        assert not watch.stop_if_called()


def test_an_imported_network_is_ordered_by_its_names(tmp_path):
    net = gluon.model_zoo.vision.resnet18_v1(prefix="net_")
    net.initialize()
    net.hybridize()
    net(mx.nd.ones((1, 3, 32, 32)))
    net.export(str(tmp_path / "net"))
    imported = gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
    found = [set(stage.collect_params().keys()) for stage in stages(imported)]
    assert found == [set(stage.collect_params().keys()) for stage in stages(net)]
