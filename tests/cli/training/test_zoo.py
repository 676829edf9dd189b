"""Every name of GluonCV's model zoo is a classifier that the command can train, or is refused by what it is."""

from __future__ import annotations

import os
import re

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")

from gluoncv.model_zoo import get_model_list

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer_cli.errors import UserError
from multitrainer_cli.training import network, zoo

OTHERS = sorted(name for name in get_model_list() if any(re.fullmatch(pattern, name) for pattern, _ in zoo.OTHER_TASKS))
CLASSIFIERS = sorted(set(get_model_list()) - set(OTHERS))
WHOLE_ZOO = "MULTITRAINER_WHOLE_ZOO" in os.environ  # takes minutes
SMALL = [
    "cifar_resnet20_v2",
    "googlenet",
    "hrnet_w18_small_v1_c",
    "mobilenet0.25",
    "mobilenetv3_small",
    "resnest14",
    "shufflenet_v1",
    "squeezenet1.1",
]
ONE_OF_A_KIND = [
    "alexnet",
    "cifar_resnet20_v2",
    "cifar_resnext29_32x4d",
    "cifar_wideresnet16_10",
    "cifar_residualattentionnet56",
    "darknet53",
    "densenet121",
    "dla34",
    "googlenet",
    "hrnet_w18_small_v1_c",
    "inceptionv3",
    "mobilenet0.25",
    "mobilenetv2_0.25",
    "mobilenetv3_small",
    "residualattentionnet56",
    "resnest14",
    "resnet18_v1",
    "resnet18_v2",
    "resnet50_v1s",
    "resnext50_32x4d",
    "resnext101e_64x4d",
    "se_resnet18_v1",
    "se_resnet18_v2",
    "se_resnext50_32x4d",
    "senet_154e",
    "shufflenet_v1",
    "shufflenet_v2",
    "squeezenet1.1",
    "vgg11_bn",
    "xception",
]


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(mx.gluon.utils, "download", refuse)
    monkeypatch.setattr("gluoncv.model_zoo.model_store.download", refuse)


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        ("SSD_512_resnet50_v1_voc", "finds objects, for which see docs/detection.md"),
        ("faster_rcnn_resnet50_v1b_coco", "finds objects"),
        ("custom_faster_rcnn_fpn", "finds objects"),
        ("center_net_dla34_coco", "finds objects"),
        ("fcn_resnet50_ade", "labels pixels, for which see docs/segmentation.md"),
        ("hrnet_w48_s", "labels pixels"),
        ("fastscnn_citys", "labels pixels"),
        ("i3d_resnet50_v1_custom", "takes clips of video"),
        ("resnet50_v1b_custom", "takes clips of video"),
        ("vgg16_ucf101", "takes clips of video"),
        ("simple_pose_resnet18_v1b", "finds the joints of people"),
        ("mobilenet1.0_int8", "is quantized: it can predict, but not be trained"),
        ("resnet50_v1d_0.11", "is pruned, and GluonCV builds it for its own 1000 classes only"),
        ("monodepth2_resnet18_kitti_mono_640x192", "estimates distances"),
        ("siamrpn_alexnet_v2_otb15", "follows an object through a video"),
    ],
)
def test_what_is_no_classifier_is_refused_by_what_it_is(model, answer):
    with pytest.raises(UserError, match=f"--model {model.lower()} {answer}.*; choose an image classifier, such as"):
        zoo.make(model, 3)


def test_the_rules_are_for_no_name_of_a_classifier():
    assert len(CLASSIFIERS) > 100
    assert {"mobilenetv2_0.75", "mobilenet0.25", "resnet50_v1b", "hrnet_w18_c", "inceptionv3"} <= set(CLASSIFIERS)
    for pattern, _ in zoo.OTHER_TASKS:
        assert any(re.fullmatch(pattern, name) for name in OTHERS), pattern


def test_every_other_name_is_refused_before_anything_is_built_or_downloaded():
    for name in OTHERS:
        with pytest.raises(UserError, match=f"--model {re.escape(name)} "):
            zoo.make(name, 3)


def test_an_unknown_model_is_answered_with_similar_names():
    with pytest.raises(UserError, match="resnet50_v1b"):
        zoo.make("resnet50v1b", 3)


def test_published_weights_are_known_by_name_without_a_download():
    assert zoo.check_published("ResNet18_v1b") == "resnet18_v1b"
    assert zoo.check_published("hrnet_w18_c") == "hrnet_w18_cls"
    with pytest.raises(UserError, match="--pretrained: GluonCV publishes no weights for se_resnet18_v1; use --params"):
        zoo.check_published("se_resnet18_v1")


@pytest.mark.slow
@pytest.mark.parametrize("model", CLASSIFIERS if WHOLE_ZOO else ONE_OF_A_KIND)
def test_every_classifier_has_one_head_and_scores_every_class(model):
    net, head = network.build(model, 3)
    size = network.input_size(model)
    if model.endswith("_gn"):
        pytest.skip("cannot be hybridized")
    with mx.name.NameManager():
        _, (shape,), _ = net(mx.sym.var("data")).infer_shape(data=(2, 3, size, size))
    assert shape == (2, 3)
    assert head in ("output", "fc", "classifier", "out")


@pytest.mark.slow
@pytest.mark.parametrize("model", ONE_OF_A_KIND if WHOLE_ZOO else SMALL)
def test_one_of_each_kind_trains(model):
    net, head = network.build(model, 3)
    network.initialize(net, [mx.cpu()], model, 3)
    weight = next(param for name, param in network.find(net, head).collect_params().items() if name.endswith("weight"))
    trainer = MultiLRTrainer([ParamGroup(net, 0.1), ParamGroup(network.find(net, head), 1)], "sgd")
    net.hybridize(static_alloc=True)
    size, before = network.input_size(model), weight.data().asnumpy().copy()
    with mx.autograd.record():
        loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()(
            net(mx.nd.random.normal(shape=(2, 3, size, size))), mx.nd.array([0, 1])
        )
    loss.backward()
    trainer.step(2)
    assert not np.array_equal(weight.data().asnumpy(), before)


def test_an_unknown_name_is_answered_with_names_of_classifiers():
    with pytest.raises(UserError, match="GluonCV has no such model; closest: ") as caught:
        zoo.make("yolo3_darknet53_cocoo", 2)
    assert {*str(caught.value).rpartition("closest: ")[2].split(", ")} <= {*CLASSIFIERS}
