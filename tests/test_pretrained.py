"""`load_backbone` loads what fits, says what it left out, and changes nothing if it raises."""

import struct

import mxnet as mx
import numpy as np
import pytest
from gluoncv import model_zoo
from mxnet import gluon
from mxnet.gluon import nn
from mxnet.gluon.model_zoo import vision

from multitrainer import MultiLRTrainer, load_backbone
from support import CONTEXTS, snapshot

HEAD = ["output.0.weight"]


def make(classes, initialize=True, run=True, **kwargs):
    net = vision.mobilenet_v2_0_25(classes=classes, **kwargs)
    if initialize:
        net.initialize(mx.init.Xavier(), ctx=kwargs.get("ctx"))
    if run:
        net(mx.nd.zeros((1, 3, 32, 32)))
    return net


def values(net):
    return {path: param.list_data()[0].asnumpy() for path, param in net._collect_params_with_prefix().items()}


def assert_loaded(net, source, before=None, but=HEAD):
    """Check that all values are those of ``source``, and the others those of ``before``."""
    wanted = values(source)
    for path, value in values(net).items():
        if path in but:
            assert before is None or (value == before[path]).all(), path
        else:
            assert (value == wanted[path]).all(), path


class Classifier(gluon.HybridBlock):
    """A network without a name scope: its layers are numbered with all those of the process."""

    def __init__(self, classes, width=16):
        super().__init__()
        self.conv0 = nn.Conv2D(width, 3, in_channels=3)
        self.conv1 = nn.Conv2D(width, 3, in_channels=width)
        self.fc = nn.Dense(classes)

    def hybrid_forward(self, _, x):
        return self.fc(self.conv1(self.conv0(x)))


def classifier(classes, **kwargs):
    net = Classifier(classes, **kwargs)
    net.initialize(mx.init.Xavier())
    net(mx.nd.ones((1, 3, 8, 8)))
    return net


@pytest.fixture
def fname(tmp_path):
    return tmp_path / "net.params"


def save(net, fname, how):
    if how == "save_parameters":
        net.save_parameters(str(fname))
    elif how == "deduplicate":
        net.save_parameters(str(fname), deduplicate=True)
    elif how == "names":
        net.collect_params().save(str(fname))
    elif how == "names without prefix":
        net.collect_params().save(str(fname), strip_prefix=net.prefix)
    else:
        net.hybridize()
        net(mx.nd.zeros((1, 3, 32, 32)))
        net.export(str(fname))
        fname.with_name(f"{fname.name}-0000.params").rename(fname)


FORMATS = ["save_parameters", "deduplicate", "names", "names without prefix", "export"]


@pytest.mark.parametrize("how", FORMATS)
def test_everything_but_the_head_of_another_task(fname, how):
    """Gluon numbers the second network otherwise, so the names differ where they are not paths."""
    source, net = make(10), make(3)
    save(source, fname, how)
    before = values(net)
    report = load_backbone(net, fname)
    assert report.left_out == {"output.0.weight": "shape (10, 1280, 1, 1) in the file, (3, 1280, 1, 1) in the network"}
    assert len(report.loaded) == len(before) - 1
    assert (report.not_in_file, report.not_in_network, report.head) == ((), (), ())
    assert_loaded(net, source, before)


@pytest.mark.parametrize("how", ["save_parameters", "names"])
def test_layers_that_are_numbered_with_all_of_the_process(fname, how):
    """conv1 of the network must not get the values of conv1 in the file, if the file begins at conv0."""
    with mx.name.NameManager():
        source = classifier(10)
    with mx.name.NameManager():
        nn.Conv2D(1, 1), nn.Dense(1)
        net = classifier(11)
    save(source, fname, how)
    before = values(net)
    assert sorted(load_backbone(net, fname).left_out) == ["fc.bias", "fc.weight"]
    assert_loaded(net, source, before, but=["fc.weight", "fc.bias"])


@pytest.mark.parametrize("how", FORMATS)
def test_a_network_whose_shapes_are_unknown(fname, how):
    source, net = make(10), make(3, run=False)
    save(source, fname, how)
    assert list(load_backbone(net, fname).left_out) == HEAD
    net(mx.nd.zeros((1, 3, 32, 32)))
    assert_loaded(net, source)
    assert not (net.output[0].weight.data().asnumpy() == 0).all()  # initialized as net.initialize said


def test_a_symbol_that_does_not_know_its_dimensions(fname):
    """The features of GluonCV's SSD are such a SymbolBlock."""

    def make_net(value):
        data = mx.sym.var("data")
        symbol = mx.sym.FullyConnected(mx.sym.BatchNorm(data, name="norm"), num_hidden=4, name="fc")
        net = gluon.SymbolBlock(symbol, data)
        net.initialize(mx.init.Constant(value))
        return net

    source, net = make_net(0.5), make_net(1)
    source(mx.nd.zeros((1, 3)))
    source.save_parameters(str(fname))
    assert net.collect_params()["fc_weight"].shape is None
    assert load_backbone(net, fname).left_out == {}
    assert_loaded(net, source, but=())
    x = mx.nd.random.normal(shape=(2, 3))
    assert (net(x) == source(x)).asnumpy().all()


@pytest.mark.parametrize("ctx", [None, CONTEXTS, CONTEXTS[1]], ids=str)
def test_a_network_that_is_not_initialized(fname, ctx):
    source, net = make(10), make(3, initialize=False, run=False)
    source.save_parameters(str(fname))
    load_backbone(net, fname, ctx=ctx)
    wanted = ctx if isinstance(ctx, list) else [ctx or mx.cpu(0)]
    assert net.features[0].weight.list_ctx() == wanted
    with pytest.warns(UserWarning, match="already initialized"):
        net.initialize(ctx=wanted)
    net(mx.nd.zeros((1, 3, 32, 32), ctx=wanted[0]))
    assert_loaded(net, source)


def test_every_context_gets_the_values(fname):
    source, net = make(10), vision.mobilenet_v2_0_25(classes=3)
    net.initialize(ctx=CONTEXTS)
    net(mx.nd.zeros((1, 3, 32, 32)))
    source.save_parameters(str(fname))
    load_backbone(net, fname, ctx=CONTEXTS[::-1])
    for param, other in zip(net.features.collect_params().values(), source.features.collect_params().values()):
        assert [(array.asnumpy() == other.data().asnumpy()).all() for array in param.list_data()] == [True, True]


def test_a_named_head_keeps_values_that_would_fit(fname):
    source, net = make(3), make(3)
    source.save_parameters(str(fname))
    before = values(net)
    report = load_backbone(net, fname, head=net.output)
    assert report.left_out == {"output.0.weight": "part of the head"}
    assert_loaded(net, source, before)
    assert load_backbone(net, fname).left_out == {}


def test_a_part_of_a_network_from_the_file_of_the_whole(fname):
    source, net = make(10), make(3)
    source.save_parameters(str(fname))
    report = load_backbone(net.features, fname)
    assert (report.left_out, report.not_in_network) == ({}, ("output.0.weight",))
    assert_loaded(net, source)


def test_a_network_from_the_file_of_a_part(fname):
    source, net = make(10), make(3)
    source.features.save_parameters(str(fname))
    before = values(net)
    assert load_backbone(net, fname).left_out == {"output.0.weight": "not in the file"}
    assert_loaded(net, source, before)


def test_a_shared_parameter_is_loaded_once(fname):
    def tied():
        net = nn.HybridSequential()
        net.add(nn.Dense(4, in_units=4))
        net.add(nn.Dense(4, in_units=4, params=net[0].params))
        net.initialize(mx.init.Normal())
        return net

    source, net = tied(), tied()
    source.save_parameters(str(fname), deduplicate=True)
    assert load_backbone(net, fname).loaded == ("0.weight", "0.bias")
    assert_loaded(net, source, but=())


@pytest.mark.parametrize(("there", "here"), [("float16", "float32"), ("float32", "float16"), ("float64", "float32")])
def test_values_are_cast_to_the_dtype_of_the_network(fname, there, here):
    source, net = (nn.Dense(4, in_units=3) for _ in range(2))
    for each, dtype in ((source, there), (net, here)):
        each.cast(dtype)
        each.initialize(mx.init.Normal(1))
    source.save_parameters(str(fname))
    load_backbone(net, fname)
    assert net.weight.data().dtype == np.dtype(here)
    expected = source.weight.data().asnumpy().astype(here)
    assert (net.weight.data().asnumpy() == expected).all()


def test_nothing_else_of_a_parameter_changes(fname):
    source, net = make(10), make(3)
    source.save_parameters(str(fname))
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    trainer = MultiLRTrainer([net, (net.features, 0), (net.output, 10)], "sgd")
    before = [(param.grad_req, param.lr_mult) for param in net.collect_params().values()]
    load_backbone(net, fname)
    assert [(param.grad_req, param.lr_mult) for param in net.collect_params().values()] == before
    x = mx.nd.random.normal(shape=(1, 3, 32, 32))
    assert (net.features(x) == source.features(x)).asnumpy().all()  # the trace has the new values
    with mx.autograd.record():
        net(x).sum().backward()
    loaded = snapshot(net.features)
    trainer.step(1)
    assert all((loaded[name] == value).all() for name, value in snapshot(net.features).items())


def refused(kind, net, *args, **kwargs):
    """Return the message of an error that leaves the network as it was."""
    before = values(net)
    with pytest.raises(kind) as caught:
        load_backbone(net, *args, **kwargs)
    assert all((value == before[path]).all() for path, value in values(net).items())
    return str(caught.value)


def test_a_file_that_fits_nowhere_is_refused_with_the_closest_names(fname):
    classifier(10).save_parameters(str(fname))
    message = refused(ValueError, make(3), fname)
    assert "nothing in " in message
    assert "it has 6 arrays, such as " in message
    assert "conv0.weight" in message
    assert "features.0.weight" in message


def narrow_net(classes=3):
    """Return a network with the first names of resnet18_v1, but 8 channels."""
    net = nn.HybridSequential(prefix="narrow_")
    with net.name_scope():
        net.features, net.output = nn.HybridSequential(prefix=""), nn.Dense(classes, in_units=8)
        net.features.add(nn.Conv2D(8, 3, in_channels=3), nn.BatchNorm(in_channels=8))
    net.initialize()
    return net


@pytest.mark.parametrize("run", [False, True])
def test_a_file_of_another_width_fits_nowhere(fname, run):
    """MXNet does not notice a BatchNorm layer with other sizes than its input has."""
    narrow_net().save_parameters(str(fname))
    net = vision.resnet18_v1()
    net.initialize()
    if run:
        net(mx.nd.zeros((1, 3, 32, 32)))
        assert "nothing in " in refused(ValueError, net, fname)
        return
    with pytest.raises(ValueError, match=r"such as that of features.0.weight: \(8, 3, 3, 3\) in the file, \(64, 0, 7"):
        load_backbone(net, fname)
    assert net.features[1].gamma.shape == (0,)
    net(mx.nd.zeros((1, 3, 32, 32)))
    assert net.features[1].gamma.shape == (64,)


def test_what_follows_another_width_waits_for_its_shape(fname):
    def make_net(width):
        net = nn.HybridSequential(prefix="net_")
        net.add(nn.Conv2D(8, 3), nn.BatchNorm(), nn.Conv2D(width, 3), nn.BatchNorm(), nn.Dense(5))
        net.initialize()
        return net

    source, net = make_net(12), make_net(6)
    source(mx.nd.zeros((1, 3, 8, 8)))
    source.save_parameters(str(fname))
    report = load_backbone(net, fname, head=net[4])
    norm = ["3.gamma", "3.beta", "3.running_mean", "3.running_var"]
    assert report.unknown_shape == tuple(norm)
    assert report.left_out["3.gamma"] == "shape unknown: run one forward pass first"
    assert f"shape unknown (run one forward pass first): {', '.join(norm)}" in str(report)
    net(mx.nd.zeros((1, 3, 8, 8)))
    assert_loaded(net, source, but=["2.weight", "2.bias", "4.weight", "4.bias", *norm])
    assert load_backbone(net, fname, head=net[4]).other_shape["3.gamma"] == ((12,), (6,))


@pytest.mark.parametrize(
    "model", ["resnet18_v1b", "resnet18_v2", "cifar_wideresnet16_10", "mobilenetv3_small", "densenet121"]
)
def test_fresh_classifiers_of_gluoncv_get_the_whole_backbone(fname, model):
    """The head of another task is last, so every BatchNorm layer is loaded although it knows no shape yet."""
    source, net = (model_zoo.get_model(model, classes=classes) for classes in (10, 3))
    for each in (source, net):
        each.initialize(mx.init.Xavier())
    source(mx.nd.zeros((1, 3, 224, 224))).wait_to_read()  # oneDNN may reorder weights while they are read
    source.save_parameters(str(fname))
    report = load_backbone(net, fname)
    assert report.unknown_shape == ()
    assert len({path.rpartition(".")[0] for path in report.left_out}) == 1, report.left_out  # the output layer
    net(mx.nd.zeros((1, 3, 224, 224))).wait_to_read()
    assert_loaded(net, source, but=report.left_out)


def test_the_same_names_with_other_shapes_fit_nowhere(fname):
    source, net = (nn.Dense(4, in_units=size) for size in (2, 3))
    for each in (source, net):
        each.initialize()
    mx.nd.save(str(fname), {"weight": source.weight.data()})
    assert "nothing in " in refused(ValueError, net, fname)


def test_a_rank_that_differs_does_not_fit(fname):
    """Gluon compares the sizes up to the shorter shape."""
    net = nn.Dense(4, in_units=3, prefix="")
    net.initialize()
    mx.nd.save(str(fname), {"weight": mx.nd.ones((4, 3, 1)), "bias": mx.nd.ones(4)})
    assert load_backbone(net, fname).other_shape == {"weight": ((4, 3, 1), (4, 3))}


@pytest.mark.parametrize("damage", ["text", "empty", "half", "last byte", "rank", "list", "npz"])
def test_a_file_that_holds_no_parameters_is_refused(fname, damage):
    net = make(3)
    net.save_parameters(str(fname))
    content = fname.read_bytes()
    if damage == "list":
        mx.nd.save(str(fname), [mx.nd.zeros(1)])
    elif damage == "npz":
        with fname.open("wb") as file:
            np.savez(file, weight=np.zeros((2, 2), "float32"))
    else:
        damaged = {"text": b"nothing of the kind", "empty": b"", "half": content[: len(content) // 2]}
        empty = struct.pack("<QQQIiI", 0x112, 0, 1, 0xF993FAC9, 0, 0)  # one array of 0 dimensions has no storage type
        damaged["rank"] = empty + struct.pack("<QQ6s", 1, 6, b"weight")
        fname.write_bytes(damaged.get(damage, content[:-1]))
    message = refused(ValueError, net, fname)
    assert ("holds arrays without names" if damage == "list" else "cannot be read as MXNet parameters") in message


def test_a_missing_file_is_an_os_error(tmp_path):
    assert "there is no such file" in refused(OSError, make(3), tmp_path / "missing.params")
    assert "cannot be read" in refused(ValueError, make(3), tmp_path)


def test_wrong_arguments_are_named(fname):
    net = make(3)
    net.save_parameters(str(fname))
    assert "does not hold" in refused(ValueError, net, fname, head=nn.Dense(2))
    assert "head: 'output' is not a target" in refused(TypeError, net, fname, head="output")
    assert "is initialized on [cpu(0)]" in refused(ValueError, net, fname, ctx=mx.cpu(1))
    with pytest.raises(ValueError, match="has no Parameters"):
        load_backbone(nn.Flatten(), fname)
    with pytest.raises(TypeError, match="expected a network"):
        load_backbone(net.collect_params(), fname)


def test_a_report_prints_what_was_left_out(fname):
    source, net = classifier(10), classifier(11)
    source.save_parameters(str(fname))
    arrays = mx.nd.load(str(fname))
    del arrays["conv1.bias"]
    arrays.update({f"extra.{number}": mx.nd.zeros(1) for number in range(7)})
    mx.nd.save(str(fname), arrays)
    report = load_backbone(net, fname, head=net.conv0.bias)
    assert str(report).splitlines() == [
        f"loaded 2 of 6 Parameters, {fname} -> Classifier '{net.name}'",
        "  other shape: fc.weight (10, 256) instead of (11, 256), fc.bias (10,) instead of (11,)",
        "  not in the file: conv1.bias",
        "  not in the network: extra.0, extra.1, extra.2, extra.3, extra.4, and 2 more",
        "  part of the head: conv0.bias",
    ]


def equal_layers(numbers, last=4, tie=False):
    """Return layers of 4 units that are named dense1, dense2, ..., as in a process that made others before."""
    net = nn.HybridSequential(prefix="")
    for number in numbers:
        units = last if number == numbers[-1] else 4
        net.add(
            nn.Dense(units, in_units=4, prefix=f"dense{number}_", params=net[0].params if tie and len(net) else None)
        )
    net.initialize(mx.init.Normal(1))
    return net


def test_a_layer_that_several_of_the_file_fit_is_refused(fname):
    source = equal_layers(range(3))
    source.save_parameters(str(fname))
    message = refused(ValueError, equal_layers([5])[0], fname)
    assert "Dense 'dense5': '0.' of the file, '1.' of the file, '2.' of the file fit equally well" in message
    assert message.endswith("pass the whole network that was saved")
    for layer in source:  # any of them is right if all are the same
        layer.weight.set_data(mx.nd.ones((4, 4)))
    source.save_parameters(str(fname))
    net = equal_layers([5])[0]
    assert load_backbone(net, fname).loaded == ("weight", "bias")
    assert (net.weight.data() == 1).asnumpy().all()


def test_a_part_that_fits_by_its_shape_alone_is_named(fname):
    source, net = equal_layers(range(3), last=2), equal_layers([5], last=2)[0]
    source.save_parameters(str(fname))
    report = load_backbone(net, fname)
    assert f"{fname}, 2. -> Dense 'dense5'" in str(report)
    assert_loaded(net, source[2], but=())


def test_a_file_that_several_parts_of_the_network_fit_is_refused(fname):
    source, net = equal_layers(range(2)), nn.HybridSequential()
    source.save_parameters(str(fname))
    net.add(equal_layers(range(2)), equal_layers(range(2, 4), last=3))
    assert f"{fname} -> 0. of HybridSequential" in str(load_backbone(net, fname))
    assert_loaded(net[0], source, but=())
    net = nn.HybridSequential()
    net.add(equal_layers(range(2)), equal_layers(range(2, 4)))
    message = refused(ValueError, net, fname)
    assert "'0.' of the network, '1.' of the network fit equally well" in message
    assert message.endswith("pass the part that was saved")


@pytest.mark.parametrize("last", [4, 2])
def test_shifted_numbers_are_paired_in_their_order(fname, last):
    """dense1 and dense2 of the file would fit dense1 and dense2 of the network too."""
    source, net = equal_layers(range(3)), equal_layers(range(1, 4), last)
    save(source, fname, "names")
    before = values(net)
    report = load_backbone(net, fname)
    head = [] if last == 4 else ["2.weight", "2.bias"]
    assert list(report.left_out) == head
    assert_loaded(net, source, before, but=head)


@pytest.mark.parametrize("numbers", [range(1, 5), range(1, 3), [2]])
def test_the_same_numbers_mean_nothing_if_there_are_more_or_fewer(fname, numbers):
    save(equal_layers(range(3)), fname, "names")
    message = refused(ValueError, equal_layers(list(numbers)), fname)
    assert "the file has 3 layers that are numbered as dense0, dense1, dense2, the network" in message
    assert "a file of save_parameters" in message


def test_the_same_numbers_count_if_they_begin_alike_or_fit_better(fname):
    source = equal_layers(range(3))
    save(source, fname, "names")
    net = equal_layers(range(4))
    assert list(load_backbone(net, fname).left_out) == ["3.weight", "3.bias"]
    assert_loaded(net, source, but=["3.weight", "3.bias"])
    source = nn.HybridSequential(prefix="")
    for number, units in enumerate((4, 5, 6, 7)):
        source.add(nn.Dense(units, in_units=4, prefix=f"fc{number}_"))
    source.initialize(mx.init.Normal(1))
    save(source, fname, "names")
    net = nn.HybridSequential(prefix="")
    net.add(*(nn.Dense(units, in_units=4, prefix=f"fc{units - 4}_") for units in (5, 6)))
    net.initialize()
    assert load_backbone(net, fname).left_out == {}
    assert (net[0].weight.data() == source[1].weight.data()).asnumpy().all()
    assert (net[1].weight.data() == source[2].weight.data()).asnumpy().all()


@pytest.mark.parametrize("how", ["names", "export"])
def test_names_that_begin_with_an_underscore(fname, how):
    """The units of MobileNetV3 are numbered so, and the second network begins at 11."""
    source, net = (model_zoo.get_model("mobilenetv3_small", classes=classes) for classes in (10, 3))
    for each in (source, net):
        each.initialize(mx.init.Normal(0.1))
        each(mx.nd.zeros((1, 3, 32, 32)))
    save(source, fname, how)
    report = load_backbone(net, fname)
    assert len({path.rpartition(".")[0] for path in report.left_out}) == 1, report.left_out  # the output layer
    assert_loaded(net, source, but=report.left_out)


def test_arrays_that_a_shared_parameter_cannot_have_are_listed(fname):
    source, net = equal_layers(range(2)), equal_layers(range(2), tie=True)
    source[1].bias.set_data(source[0].bias.data())
    source.save_parameters(str(fname))
    report = load_backbone(net, fname)
    assert (report.loaded, report.not_in_network) == (("0.weight", "0.bias"), ("1.weight",))
    assert_loaded(net[1], source[0], but=())


def test_a_shared_parameter_gets_the_first_array_that_fits(fname):
    net = equal_layers(range(2), tie=True)
    mx.nd.save(str(fname), {"0.weight": mx.nd.zeros((5, 4)), "1.weight": mx.nd.ones((4, 4))})
    report = load_backbone(net, fname)
    assert (report.loaded, report.not_in_network) == (("0.weight",), ("0.weight",))
    assert (net[0].weight.data() == 1).asnumpy().all()
