"""docs/detection.md and docs/segmentation.md run from top to bottom, and do what they say to backbone and head."""

import contextlib
import io
import pathlib
import random
import re
import warnings

import gluoncv.model_zoo
import mxnet as mx
import numpy as np
import pytest
from gluoncv import model_zoo
from PIL import Image

from multitrainer import MultiLRTrainer, ParamGroup, discriminative, layerwise_decay, load_backbone, stages
from support import moved, run_python, snapshot
from vision_support import write_mask_folder, write_voc_folder

pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


class Page:
    """A page whose blocks run one after another, with some settings replaced; a pattern tells where to stop."""

    def __init__(self, name, settings):
        text = (DOCS / name).read_text()
        for old, new in settings.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        self.blocks = BLOCK.findall(text)
        self.scope, self.printed = {}, ""

    def run_through(self, pattern):
        """Run the blocks up to and with the first that has ``pattern``; check what they print if the page shows it."""
        while True:
            code, shown = self.blocks.pop(0)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "page", "exec"), self.scope)
            self.printed = printed.getvalue()
            assert not shown or self.printed == shown
            if pattern in code:
                return self.scope

    def losses(self):
        """Return the losses that the last block printed."""
        return [float(value) for value in re.findall(r"loss ([\d.]+)", self.printed)]


def values(net):
    """Return what `snapshot` does, by attribute path, which is the same in two networks."""
    mx.nd.waitall()
    return {path: param.data().asnumpy() for path, param in net._collect_params_with_prefix().items()}


def names(blocks):
    """Return the names of all Parameters of Blocks, statistics among them."""
    return {name for block in blocks for name in block.collect_params()}


def check_rates(net, step, groups):
    """Check that one step moves the layers that have no momentum yet by -rate * (gradient + decay * weight)."""
    before = snapshot(net)
    step()
    after = snapshot(net)
    params = net.collect_params()
    for block, rate, wd in groups:
        for name, param in block.collect_params().items():
            if param.grad_req == "null":
                continue
            expected = -rate * (param.grad().asnumpy() + wd * before[name])
            actual = after[name] - before[name]
            assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max() + 1e-7, name
    assert set(params) == set(before)
    return before, after


def check_resumed(scope, net, trainer, batch):
    """Check that a step of the resumed training gives the bits of a step of the one that was not stopped."""
    results = []
    for pair in ((scope["net"], scope["trainer"]), (net, trainer)):
        scope["net"], scope["trainer"] = pair
        mx.random.seed(5)
        scope["train_step"](*batch)
        results.append(values(scope["net"]))
    assert not moved(*results)


class TestDetection:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        write_voc_folder(tmp_path / "fruit")
        build = model_zoo.get_model

        def without_download(name, pretrained=False, **kwargs):
            net = build(name, **{**kwargs, "pretrained_base": False})
            if pretrained:
                net.initialize(mx.init.Xavier())
                net(mx.nd.zeros((1, 3, 300, 300)))  # loaded weights have no unknown shapes
            return net

        monkeypatch.setattr(gluoncv.model_zoo, "get_model", without_download)
        monkeypatch.chdir(tmp_path)

    @pytest.fixture
    def page(self):
        for seed in (random.seed, np.random.seed, mx.random.seed):
            seed(0)
        return Page(
            "detection.md", {"EPOCHS_FROZEN, EPOCHS, BATCH = 5, 15, 16": "EPOCHS_FROZEN, EPOCHS, BATCH = 3, 4, 4"}
        )

    def test_a_misspelled_class_is_an_error(self, page):
        page.blocks[0] = (page.blocks[0][0].replace("apple", "aple").replace("pear", "peer"), "")
        with pytest.raises(ValueError, match="no object in fruit is named aple or peer"):
            page.run_through('load("val")')

    def test_does_what_it_says(self, page):
        scope = page.run_through('load("val")')
        assert page.printed == (
            "train: 8 of 9 images have objects of these classes\nval: 4 of 4 images have objects of these classes\n"
        )
        scope = page.run_through("anchors")
        net, trainer = scope["net"], scope["trainer"]
        assert tuple(net.classes) == scope["CLASSES"] == ("apple", "pear")
        batch = images, classes, boxes = [each.as_in_context(mx.cpu()) for each in next(iter(scope["train_batches"]))]
        before = snapshot(net)

        def loss():
            with mx.autograd.train_mode():
                return scope["multibox_loss"](*net(images)[:2], classes, boxes)[0][0].sum().asscalar()

        first = loss()
        page.run_through("backbone frozen")
        assert len(page.losses()) == 3
        assert loss() < first
        heads = names([net.class_predictors]), names([net.box_predictors])
        trained = moved(before, snapshot(net))
        assert heads[0] < trained <= heads[0] | heads[1]  # no object matches the largest boxes

        page.run_through("trainer.set_lr_mult")
        assert trainer.learning_rates == {"predictors": 0.001, "backbone": 0.0001}
        before, after = check_rates(
            net,
            lambda: scope["train_step"](*batch),
            [(net.features, 0.0001, 5e-4)],
        )
        assert {name for name in names([net.features]) if "running" in name} <= moved(before, after)

        page.run_through("gamma|beta")
        before = snapshot(net)
        page.run_through("range(EPOCHS_FROZEN, EPOCHS)")
        trained = moved(before, snapshot(net))
        norms = ("gamma", "beta", "running_mean", "running_var")
        assert not [name for name in trained if name.endswith(norms)]
        assert {name for name in names([net.features]) if name.endswith("weight")} <= trained
        page.run_through("evaluate")
        scores = eval(page.printed)
        assert set(scores) == {"apple", "pear", "mAP"}
        assert all(0 <= value <= 1 for value in scores.values())

        page.run_through("save_states")
        page.run_through("detector(image")
        assert tuple(scope["detector"].classes) == ("apple", "pear")
        for here, loaded in zip(net(images), scope["detector"](images)):
            assert np.array_equal(here.asnumpy(), loaded.asnumpy())

        page.run_through("load_states")
        assert not page.blocks
        assert scope["trainer"].optimizer.num_update == trainer.optimizer.num_update == 9
        check_resumed(scope, net, trainer, batch)


def ssd():
    net = model_zoo.get_model("ssd_300_mobilenet0.25_voc", pretrained_base=False)
    net.initialize()
    return net, mx.nd.random.normal(shape=(1, 3, 300, 300))


class TestWarningsAboutDetectors:
    """What the page warns of does happen, so that the warnings can go when it no longer does."""

    @pytest.mark.parametrize("first", ["train", "predict"])
    def test_a_hybridized_ssd_stays_in_the_mode_of_its_first_call(self, first):
        net, x = ssd()
        shapes = []
        for hybridize in (lambda: net.features.hybridize(), lambda: net.hybridize()):
            hybridize()
            for mode in ("train", "predict") if first == "train" else ("predict", "train"):
                with mx.autograd.train_mode() if mode == "train" else mx.autograd.predict_mode():
                    shapes.append([each.shape[-1] for each in net(x)])
        training, detections = [21, 4, 4], [1, 1, 4]
        right = [training, detections] if first == "train" else [detections, training]
        assert shapes == [*right, right[0], right[0]]

    @pytest.mark.parametrize("hybridize", [False, True])
    def test_a_loss_from_detections_has_no_gradient(self, hybridize):
        code = f"""
            import multitrainer, mxnet as mx
            from gluoncv.model_zoo import get_model
            net = get_model("ssd_300_mobilenet0.25_voc", pretrained_base=False)
            net.initialize()
            if {hybridize}:
                net.hybridize()
            with mx.autograd.record(train_mode=False):
                value = sum(each.sum() for each in net(mx.nd.random.normal(shape=(1, 3, 300, 300))))
            value.backward()
            print(value.asscalar())
        """
        done = run_python(code)
        assert done.stdout == "nan\n" if hybridize else done.returncode != 0, done.stderr


@pytest.mark.parametrize("name", ["ssd_300_mobilenet0.25_voc", "ssd_512_resnet18_v1_voc"])
def test_layers_that_an_ssd_adds_to_its_base_are_named_as_the_page_says(name):
    net = model_zoo.get_model(name, pretrained_base=False)
    net.initialize()
    base = model_zoo.get_model(name.split("_", 2)[2][: -len("_voc")])
    code = next(code for code, _ in BLOCK.findall((DOCS / "detection.md").read_text()) if "expand_" in code)
    scope = {"net": net}
    exec(code, scope)
    found = {re.sub(r"^.*?_.*?_", "", key) for key in scope["pretrained"]}
    assert found <= {key[len(base.prefix) :] for key in base.collect_params()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the statistics of what is frozen can be held
        trainer = MultiLRTrainer([net, (scope["pretrained"], 0)], "sgd")
    frozen = {key for group in trainer.groups if group.lr_mult == 0 for key in group.params}
    assert frozen == {key for key in scope["pretrained"] if not key.endswith(("running_mean", "running_var"))}


NETWORKS = {
    "SSD": ["ssd_300_vgg16_atrous_voc", "ssd_300_resnet34_v1b_voc", "ssd_300_mobilenet0.25_voc"],
    "YOLOv3": ["yolo3_darknet53_voc", "yolo3_mobilenet0.25_voc"],
    "Faster R-CNN": ["faster_rcnn_resnet50_v1b_voc"],
    "FCN, PSPNet, DeepLabV3": ["fcn_resnet50_voc", "psp_resnet50_ade", "deeplab_resnet50_ade"],
}


def test_the_parts_in_the_table_are_the_network_and_the_recipes_know_their_order():
    row = re.compile(r"^\| ([\w, 3-]+) \| (`net.*?) \| (`net.*?) \|$", re.MULTILINE)
    rows = row.findall((DOCS / "detection.md").read_text())
    assert {row[0] for row in rows} == NETWORKS.keys()
    for kind, *parts in rows:
        for name in NETWORKS[kind]:
            net = model_zoo.get_model(name, pretrained=False, pretrained_base=False)
            backbone, head = ([eval(path, {"net": net}) for path in re.findall("`(.*?)`", part)] for part in parts)
            net.initialize()
            constants = {key for key, param in net.collect_params().items() if isinstance(param, mx.gluon.Constant)}
            assert names(backbone).isdisjoint(names(head))
            assert names([*backbone, *head]) | constants == names([net])
            order = [names([stage]) for stage in stages(net)]
            assert order[-1] - constants == names([net.yolo_outputs] if kind == "YOLOv3" else head) - constants
            assert order[0] <= names(backbone)
            assert layerwise_decay(net, 0.75)[-1].lr_mult == 1
            assert [group.lr_mult for group in discriminative(net, 0.01, 1)][:: len(order) - 1] == [0.01, 1]
            trainer = MultiLRTrainer([ParamGroup(net, 1, name="head"), ParamGroup(backbone, 0, name="backbone")], "sgd")
            assert trainer.learning_rates == {"head": 0.01, "backbone": 0}


class TestSegmentation:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        write_mask_folder(tmp_path / "fruit")
        build = model_zoo.FCN

        def without_download(*args, pretrained_base=False, **kwargs):
            net = build(*args, pretrained_base=False, **kwargs)
            if pretrained_base:
                for block in (net.conv1, net.bn1, net.layer1, net.layer2, net.layer3, net.layer4):
                    block.initialize(mx.init.Xavier())
                net(mx.nd.zeros((1, 3, 64, 64)))
            return net

        monkeypatch.setattr(model_zoo, "FCN", without_download)
        monkeypatch.chdir(tmp_path)

    @pytest.fixture
    def page(self):
        for seed in (random.seed, np.random.seed, mx.random.seed):
            seed(0)
        settings = {
            "EPOCHS_FROZEN, EPOCHS, BATCH = 5, 20, 8": "EPOCHS_FROZEN, EPOCHS, BATCH = 3, 4, 2",
            "SIZE = 480": "SIZE = 64",
        }
        return Page("segmentation.md", settings)

    def test_does_what_it_says(self, page):
        scope = page.run_through("trainer.summary()")
        net, trainer = scope["net"], scope["trainer"]
        batch = images, masks = next(iter(scope["train_batches"]))
        assert masks.min().asscalar() == -1
        page.run_through("def train_epoch")
        before = snapshot(net)

        def loss():
            return scope["loss"](*net(images), masks).mean().asscalar()

        first = loss()
        page.run_through("backbone frozen")
        assert len(page.losses()) == 3
        assert loss() < first
        assert moved(before, snapshot(net)) == names([net.head, net.auxlayer])

        page.run_through("trainer.set_lr_mult")
        rate = 0.001 * (1 - 10 / 12) ** 0.9  # of update 10 of 12
        assert trainer.learning_rates == pytest.approx({"backbone": 0.1 * rate, "head": 10 * rate})
        before, after = check_rates(
            net,
            lambda: scope["train_step"](images, masks),
            [(each, 0.1 * rate, 1e-4) for each in scope["backbone"](net)],
        )
        assert {name for name in names(scope["backbone"](net)) if "running" in name} <= moved(before, after)

        page.run_through("range(EPOCHS_FROZEN, EPOCHS)")
        page.run_through("evaluate")
        scores = eval(page.printed)
        assert set(scores) == {"pixel accuracy", "mean IoU"}
        assert all(0 < value <= 1 for value in scores.values())

        page.run_through("save_states")
        page.run_through("segmenter(pixels")
        mask = np.array(Image.open("mask.png"))
        assert mask.shape == (96, 96)
        assert set(np.unique(mask)) <= {0, 1, 2}

        page.run_through("load_states")
        assert not page.blocks
        assert trainer is not scope["trainer"]
        assert scope["trainer"].learning_rates == trainer.learning_rates
        for here, loaded in zip(net(images), scope["net"](images)):
            assert np.array_equal(here.asnumpy(), loaded.asnumpy())
        check_resumed(scope, net, trainer, batch)

    def test_the_gradient_of_the_loss_ignores_what_follows_it(self, page):
        scope = page.run_through("loss = ")
        masks = mx.nd.array(np.random.randint(-1, 3, (2, 5, 5)))
        outputs = [mx.nd.random.normal(shape=(2, 3, 5, 5)) for _ in range(2)]
        found = []
        for aux_weight, factor in ((0.2, 1), (0.8, 7)):
            for each in outputs:
                each.attach_grad()
            loss = scope["MixSoftmaxCrossEntropyLoss"](aux_weight=aux_weight)
            with mx.autograd.record():
                value = loss(*outputs, masks) * factor
            value.backward()
            found.append([each.grad.asnumpy() for each in outputs])
        labelled = masks.asnumpy() >= 0
        one_hot = np.moveaxis(np.eye(3)[masks.asnumpy().clip(0).astype(int)], -1, 1)
        for output, first, second in zip(outputs, *found):
            expected = (mx.nd.softmax(output, axis=1).asnumpy() - one_hot) * labelled[:, None] / labelled.sum()
            assert np.array_equal(first, second)
            assert np.allclose(first, expected, atol=1e-6)

    def test_load_backbone_leaves_out_what_depends_on_the_number_of_classes(self):
        model_zoo.FCN(5, pretrained_base=True, crop_size=64).save_parameters("five.params")
        report = load_backbone(model_zoo.FCN(3, pretrained_base=True, crop_size=64), "five.params")
        layers = ("head.block.4", "auxlayer.block.4")
        assert set(report.left_out) == {f"{layer}.{name}" for layer in layers for name in ("weight", "bias")}

    def test_a_mask_with_other_values_is_refused(self, page):
        path = pathlib.Path("fruit/val/masks/0001.png")
        Image.fromarray(np.full((96, 96), 7, "uint8")).save(path)
        with pytest.raises(ValueError, match=r"0001.png: values \[7\], expected 0 to 2 and 255"):
            page.run_through("val_batches = ")
