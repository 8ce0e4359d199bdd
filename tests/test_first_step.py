"""The explainers called with what people pass: it works, or a ValueError says what is wanted."""

import contextlib
import dataclasses
import math
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from small_models import Wrapped, finite_difference, generator, middle
from torch import nn

import explain
import hooks

CALLS = {
    "gradcam": explain.gradcam,
    "gradient": explain.gradient,
    "kernel_shap": lambda *args, **options: explain.kernel_shap(
        *args, patches=2, coalitions=14, generator=generator(0), **options
    ),
    "gp_shap": lambda *args, **options: explain.gp_shap(
        *args, patches=2, coalitions=14, generator=generator(0), **options
    ),
    "deep_shap": explain.deep_shap,
}
each_explainer = pytest.mark.parametrize("explainer", CALLS.values(), ids=CALLS)
CLASSES = [0, 2, 1]


def small_net(classes=3):
    """Images [N, 3, H, W] to logits; a stranger's: it has no gradcam_layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    )


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def images():
    return torch.randn(3, 3, 8, 8, generator=generator(1))


def wrapped(wrap, classes=3):
    """The network, its answer wrapped in something else than a tensor of logits."""
    return Wrapped(small_net(classes), wrap)


# ---------------------------------------------------------------- what a model returns


@dataclasses.dataclass
class Output:
    """As those of transformers: a loss that nobody asked for, and logits."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple = ()


Named = namedtuple("Named", ["features", "logits"])
OUTPUTS = {
    "a tuple of one": lambda z: (z,),
    "a list": lambda z: [z],
    "a tuple with auxiliary logits": lambda z: (z, 0.5 * z),
    "a tuple with a loss and hidden states": lambda z: (z.sum(), z, (z[..., None],)),
    "a dict": lambda z: {"loss": z.sum(), "logits": z},
    "an ordered dict": lambda z: OrderedDict(hidden_states=(z,), logits=z),
    "a dict of one entry": lambda z: {"out": z},
    "a dataclass": lambda z: Output(logits=z, hidden_states=(z,)),
    "a named tuple": lambda z: Named(features=torch.cat([z, z], 1), logits=z),
}


@each_explainer
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_logits_are_found_in(output, explainer, net, images):
    found = explainer(wrapped(output), images, CLASSES)
    assert torch.equal(found, explainer(net, images, CLASSES))


@each_explainer
@pytest.mark.parametrize("output", [lambda z: z, lambda z: z[:, 0]], ids=["[N, 1]", "[N]"])
def test_one_logit_is_class_1s_of_two(output, explainer, images):
    two = wrapped(lambda z: torch.cat([-1 * z, z], 1), classes=1)
    one, classes = wrapped(output, classes=1), [1, 0, 1]
    assert torch.equal(explainer(one, images, classes), explainer(two, images, classes))
    with pytest.raises(ValueError, match="the model has 2 classes.*: there is no class 2"):
        explainer(one, images, [1, 0, 2])


NO_LOGITS = {
    "features beside logits": lambda z: (torch.cat([z, z], 1), z),
    "a dict of several": lambda z: {"features": torch.cat([z, z], 1), "scores": z},
    "a map of each class": lambda z: z[:, :, None, None].expand(-1, -1, 4, 4),
    "one row too few": lambda z: z[:-1],
    "nothing": lambda z: None,
    "a name": lambda z: "cat",
    "an empty tuple": lambda z: (),
    "logits that are None": lambda z: Output(),
    "whole numbers": lambda z: z.argmax(1),
}


@each_explainer
@pytest.mark.parametrize("output", NO_LOGITS.values(), ids=NO_LOGITS)
def test_an_output_without_logits_is_refused(output, explainer, images):
    with pytest.raises(ValueError, match=r"not logits \[\d+, K\]|DeepSHAP has no rule for argmax"):
        explainer(wrapped(output), images, CLASSES)


@each_explainer
@pytest.mark.parametrize("model", [small_net, nn.Linear, "resnet18", None, lambda x: x])
def test_what_is_no_module_is_refused(model, explainer, images):
    with pytest.raises(ValueError, match="the model is a torch.nn.Module, not "):
        explainer(model, images, CLASSES)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_explained_in_a_module_of_ones_own(net, images):
    scripted = torch.jit.script(net)
    with pytest.raises(ValueError, match=r"explained as torch.nn.Sequential\(model\)"):
        explain.gradient(scripted, images, CLASSES)
    found = explain.gradient(nn.Sequential(scripted), images, CLASSES)
    torch.testing.assert_close(found, explain.gradient(net, images, CLASSES))


# ---------------------------------------------------------------- classes

SAME_CLASSES = {
    "a list": CLASSES,
    "a tuple": tuple(CLASSES),
    "an array": np.array(CLASSES),
    "an array of int32": np.array(CLASSES, np.int32),
    "an array of uint8": np.array(CLASSES, np.uint8),
    "a list of numpy's numbers": list(np.array(CLASSES)),
    "a list of tensors": [torch.tensor(k) for k in CLASSES],
    "int32": torch.tensor(CLASSES, dtype=torch.int32),
    "uint8": torch.tensor(CLASSES, dtype=torch.uint8),
    "a column": torch.tensor(CLASSES)[:, None],
    "a column, as MedMNIST's": np.array(CLASSES, np.uint8)[:, None],
}


@each_explainer
@pytest.mark.parametrize("classes", SAME_CLASSES.values(), ids=SAME_CLASSES)
def test_classes_may_be_given_as(classes, explainer, net, images):
    expected = explainer(net, images, torch.tensor(CLASSES))
    assert torch.equal(explainer(net, images, classes), expected)


@each_explainer
@pytest.mark.parametrize("number", [2, np.int64(2), torch.tensor(2)])
def test_one_number_is_the_class_of_all_images(number, explainer, net, images):
    expected = explainer(net, images, torch.tensor([2, 2, 2]))
    assert torch.equal(explainer(net, images, number), expected)


class Target:
    """As pytorch-grad-cam's ClassifierOutputTarget."""

    category = 1


NO_CLASSES = {
    "one too few": ([0, 1], r"for each of 3 images, not \[2\]"),
    "one too many": ([0, 1, 2, 0], r"for each of 3 images, not \[4\]"),
    "a list of one": ([1], r"for each of 3 images, not \[1\]"),
    "none": ([], r"for each of 3 images, not \[0\]"),
    "one-hot": (torch.eye(3).long(), "of one-hot or soft labels, argmax"),
    "one-hot floats": (torch.eye(3), "of one-hot or soft labels, argmax"),
    "soft": (torch.full((3, 3), 1 / 3), "of one-hot or soft labels, argmax"),
    "floats": (torch.tensor([0.0, 1.0, 2.0]), "not torch.float32"),
    "a mask": (torch.tensor([True, False, True]), "not torch.bool"),
    "negative": ([0, -1, 1], "numbered from 0 on: there is no class -1"),
    "out of range": ([0, 1, 3], "3 classes, numbered from 0: there is no class 3"),
    "counted from 1": ([1, 2, 3], "3 classes, numbered from 0: there is no class 3"),
    "one number out of range": (9, "there is no class 9"),
    "names": (["cat", "dog", "cat"], "a whole number for each of 3 images, not list"),
    "nothing": (None, "a whole number for each of 3 images, not NoneType"),
    "ragged": ([[0], [1, 2], [0]], "a whole number for each of 3 images, not list"),
    "targets": ([Target(), Target(), Target()], "a whole number for each of 3 images, not list"),
}


@each_explainer
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("classes, words", NO_CLASSES.values(), ids=NO_CLASSES)
def test_classes_are_refused_that_are(classes, words, create_graph, explainer, net, images):
    with pytest.raises(ValueError, match=words):
        explainer(net, images, classes, create_graph=create_graph)


@pytest.fixture
def on_meta(monkeypatch):
    """(net, images) on the device "meta", where whoever asks for a value is stopped."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    return small_net().to("meta"), torch.zeros(3, 3, 8, 8, device="meta")


@each_explainer
def test_classes_may_be_on_another_device(explainer, on_meta):
    maps = explainer(*on_meta, torch.tensor(CLASSES), create_graph=True)
    assert maps.device.type == "meta" and len(maps) == 3


@each_explainer
def test_classes_on_another_device_are_checked_before_they_are_sent(explainer, on_meta):
    with pytest.raises(ValueError, match="there is no class 9"):
        explainer(*on_meta, [0, 2, 9], create_graph=True)


@each_explainer
def test_in_training_no_value_of_a_class_on_a_device_is_asked_for(explainer, on_meta):
    maps = explainer(*on_meta, torch.tensor(CLASSES, device="meta"), create_graph=True)
    assert len(maps) == 3


# ---------------------------------------------------------------- images

BYTES = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
NO_IMAGES = {
    "one without a batch": (torch.zeros(3, 8, 8), r"not \[3, 8, 8\]: give images\[None\]"),
    "grey, without channels": (torch.zeros(8, 8), r"\[N, C, H, W\], not \[8, 8\]"),
    "a video": (torch.zeros(3, 2, 3, 8, 8), r"\[N, C, H, W\], not \[3, 2, 3, 8, 8\]"),
    "bytes": (BYTES, r"not torch.uint8: images.float\(\) / 255"),
    "whole numbers": (BYTES.long(), r"not torch.int64: images.float\(\) / 255"),
    "an array": (np.zeros((3, 3, 8, 8), np.float32), "not ndarray: see torch.from_numpy"),
    "a list": ([torch.zeros(3, 8, 8)] * 3, "a float tensor .*, not list"),
    "a picture": (Image.new("RGB", (8, 8)), "a float tensor .*, not Image"),
    "grey": (torch.zeros(3, 1, 8, 8), r"the model does not take images \[\d+, 1, 8, 8\]"),
    "channels last": (torch.zeros(3, 8, 8, 3), r"the model does not take images \[\d+, 8, 8, 3\]"),
    "double": (torch.zeros(3, 3, 8, 8).double(), "of torch.float64 on cpu, its weights being"),
    "half": (torch.zeros(3, 3, 8, 8).half(), "of torch.float16 on cpu, its weights being"),
}


@each_explainer
@pytest.mark.parametrize("given, words", NO_IMAGES.values(), ids=NO_IMAGES)
def test_images_are_refused_that_are(given, words, explainer, net):
    with pytest.raises(ValueError, match=words):
        explainer(net, given, CLASSES)


@each_explainer
def test_images_on_another_device_than_the_model_are_refused(explainer, images):
    with pytest.raises(ValueError):
        explainer(small_net().to("meta"), images, CLASSES)


@each_explainer
def test_images_of_another_size_than_a_linear_layer_takes_are_refused(explainer, images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 16 * 16, 3))
    with pytest.raises(ValueError, match=r"does not take images \[\d+, 3, 8, 8\]"):
        explainer(net, images, CLASSES)


@each_explainer
def test_a_model_that_takes_more_than_images_is_refused(explainer, images):
    class Conditional(Wrapped):
        def forward(self, images, time):
            return self.net(images) * time

    with pytest.raises(ValueError, match="does not take images .* missing 1 required"):
        explainer(Conditional(small_net(), None), images, CLASSES)


def test_an_error_of_an_explainers_own_is_no_refusal(net, images):
    """Only what goes wrong within the model's forward pass is the images' fault."""
    with pytest.raises(TypeError, match="mine"):
        with hooks.answering(net):
            net(images)
            raise TypeError("mine")


@each_explainer
def test_a_refusal_leaves_the_model_as_it_was(explainer, net):
    net.train()
    with pytest.raises(ValueError):
        explainer(net, torch.zeros(3, 1, 8, 8), CLASSES)
    for module in net.modules():
        assert module.training
        assert not module._forward_hooks and not module._forward_pre_hooks


# ---------------------------------------------------------------- Grad-CAM's layer


def test_a_layer_may_be_a_list_of_one(net, images):
    expected = explain.gradcam(net, images, CLASSES, net[2])
    for layer in ([net[2]], (net[2],), ["2"]):
        assert torch.equal(explain.gradcam(net, images, CLASSES, layer), expected)


NO_LAYERS = {
    "two": (["0", "2"], "one layer, not 2"),
    "an empty list": ([], "one layer, not 0"),
    "a number": (2, "no layer 2; some it has: 0, 1, 2"),
    "a list in a list": ([["2"]], r"no layer \['2'\]"),
    "a name it does not have": ("layer4", "no layer 'layer4'; some it has"),
    "a class": (nn.Conv2d, "no layer <class"),
    "another model's": (nn.Conv2d(3, 4, 3), "ran 0 times"),
}


@pytest.mark.parametrize("layer, words", NO_LAYERS.values(), ids=NO_LAYERS)
def test_layers_are_refused_that_are(layer, words, net, images):
    with pytest.raises(ValueError, match=words):
        explain.gradcam(net, images, CLASSES, layer)


STRANGERS = {
    "resnet18": ("layer4", 128),
    "vgg16": ("features.29", 64),
    "alexnet": ("features.11", 128),
    "densenet121": ("features", 128),
    "mobilenet_v3_small": ("features", 128),
    "googlenet": ("inception5b", 128),
    "squeezenet1_1": ("classifier.2", 96),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_layer_is_the_last_feature_map_before_pooling(name):
    layer, side = STRANGERS[name]
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, num_classes=3, **options)
    found = hooks.layer_of(model.eval(), None, torch.zeros(1, 3, side, side))
    names = [key for key, module in model.named_modules() if module is found]
    assert names == [layer]


def test_no_layer_is_a_strangers_last_feature_map(net, images):
    maps = explain.gradcam(net, images, CLASSES)
    assert torch.equal(maps, explain.gradcam(net, images, CLASSES, net[3]))


def test_a_small_image_has_an_earlier_layer(images):
    model = torchvision.models.resnet18(num_classes=3).eval()
    found = hooks.layer_of(model, None, torch.zeros(1, 3, 32, 32))
    assert found is model.layer2  # 4x4 cells: layer3 has 2x2


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (1, 16)])
def test_a_grid_is_fine_enough_along_both_sides(shape, net):
    wide = torch.zeros(2, 3, *shape)
    with pytest.raises(ValueError, match="not a feature map of 4x4 or finer: choose an earlier"):
        explain.gradcam(net, wide, 0, net[3])


def test_a_model_without_a_feature_map_is_refused(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match="no module gives a feature map of 4x4 or finer at 8x8"):
        explain.gradcam(net, images, CLASSES)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    model = torchvision.models.VisionTransformer(32, 8, num_classes=3, **sizes)
    nn.init.normal_(model.heads.head.weight)  # zeros, as torchvision begins, have no gradient
    return model


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer(
        [2, 2], 8, depths=[1, 1], num_heads=[1, 1], window_size=[2, 2], num_classes=3
    )


@pytest.fixture
def larger():
    return torch.randn(3, 3, 32, 32, generator=generator(1))


def test_a_vision_transformer_needs_a_layer_for_its_last_map_is_the_patches(vit, larger):
    with pytest.raises(
        ValueError, match=r"after 'conv_proj'.*come tokens \[17, 16\], .*: say which"
    ):
        explain.gradcam(vit, larger, CLASSES)


def test_tokens_are_refused_by_what_is_wanted(vit, larger):
    with pytest.raises(ValueError, match=r"gives \[17, 16\], tokens as in transformers, not a fea"):
        explain.gradcam(vit, larger, CLASSES, vit.encoder.layers[-1].ln_1)


def test_channels_last_are_not_taken_for_a_grid(swin, larger):
    with pytest.raises(ValueError, match=r"gives \[8, 8, 16\], channels last, as swin transformer"):
        explain.gradcam(swin, larger, CLASSES, swin.features[-1])


def test_channels_last_are_not_taken_for_a_grid_in_a_wide_image(swin):
    images = torch.randn(3, 3, 32, 64, generator=generator(1))
    with pytest.raises(ValueError, match=r"gives \[8, 16, 16\], channels last"):
        explain.gradcam(swin, images, CLASSES, swin.features[-1])


def test_a_swin_transformers_layer_is_where_channels_come_first_again(swin, larger):
    maps = explain.gradcam(swin, larger, CLASSES)
    assert maps.shape == (3, 8, 8)
    assert torch.equal(maps, explain.gradcam(swin, larger, CLASSES, swin.permute))


def test_a_layer_that_returns_a_tuple_is_refused(vit, larger):
    with pytest.raises(ValueError, match="the layer returns tuple, not a feature map"):
        explain.gradcam(vit, larger, CLASSES, vit.encoder.layers[-1].self_attention)


@pytest.mark.parametrize("name", ["gradient", "kernel_shap", "gp_shap"])
def test_other_explainers_take_a_transformer(name, vit, larger):
    assert CALLS[name](vit, larger, CLASSES).any()


# ---------------------------------------------------------------- where no gradient flows


class Halves(nn.Module):
    """A backbone that runs under `around`, and a head that does not."""

    def __init__(self, around=torch.no_grad, detach=False):
        super().__init__()
        net = small_net()
        self.backbone, self.head = net[:4], net[4:]
        self.around, self.detach = around, detach

    def forward(self, images):
        with self.around():
            features = self.backbone(images)
        return self.head(features.detach() if self.detach else features)


NO_GRADIENT = {
    "no_grad": lambda: Halves(),
    "inference mode": lambda: Halves(torch.inference_mode).requires_grad_(False),
    "detach": lambda: Halves(torch.enable_grad, detach=True),
}


@pytest.mark.parametrize("model", NO_GRADIENT.values(), ids=NO_GRADIENT)
@pytest.mark.parametrize("name", ["gradcam", "gradient"])
def test_a_backbone_that_no_gradient_reaches_is_refused(name, model, images):
    options = {"layer": "backbone.0"} if name == "gradcam" else {}
    with pytest.raises(ValueError, match="no gradient flows back .* requires_grad to False"):
        CALLS[name](model(), images, CLASSES, **options)


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradcam_at_the_end_of_a_backbone_without_gradients_works(create_graph, images):
    model = Halves()
    expected = explain.gradcam(Halves(torch.enable_grad), images, CLASSES, "backbone")
    for layer in ("backbone", "backbone.3", None):
        maps = explain.gradcam(model, images, CLASSES, layer, create_graph=create_graph)
        assert torch.equal(maps, expected)


@pytest.mark.parametrize("name", ["kernel_shap", "gp_shap"])
def test_explainers_without_gradients_do_not_need_them(name, net, images):
    assert torch.equal(CALLS[name](Halves(), images, CLASSES), CALLS[name](net, images, CLASSES))


def test_deep_shap_refuses_a_backbone_that_no_gradient_reaches(images):
    with pytest.raises(ValueError, match="no gradient flows back"):
        explain.deep_shap(Halves(), images, CLASSES)


def test_a_layer_beside_the_way_to_the_logits_is_refused(images):
    class Beside(Wrapped):
        def __init__(self):
            super().__init__(small_net(), None)
            self.aside = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, images):
            self.aside(images)
            return self.net(images)

    with pytest.raises(ValueError, match="no gradient flows back"):
        explain.gradcam(Beside(), images, CLASSES, "aside")


# ---------------------------------------------------------------- fused attention


class Attention(nn.Module):
    """Attention between the cells of a feature map, fused or by torch's own layer."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh())
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, F.gelu) if layer else None
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        tokens = self.features(images).flatten(2).mT.contiguous()  # [N, T, 8]
        if self.layer is None:
            heads = tokens.unflatten(2, (2, 4)).transpose(1, 2)  # [N, 2, T, 4]
            heads = F.scaled_dot_product_attention(heads, heads, heads)
            tokens = heads.transpose(1, 2).flatten(2)
        else:
            tokens = self.layer(tokens.transpose(0, 1)).transpose(0, 1)
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("layer", [False, True], ids=["fused", "an encoder's layer"])
@pytest.mark.parametrize("name", ["gradcam", "gradient"])
@pytest.mark.parametrize("weight", ["features.0.weight", "head.weight"])
def test_attention_is_trained_through(weight, name, layer, images):
    """Also fused, whose second derivative torch does not know, the derivative is the difference."""
    net, images = Attention(layer).double(), images.double()
    options = {"layer": "features"} if name == "gradcam" else {}
    if name == "gradcam":
        options["rectify"] = False

    def value():
        return CALLS[name](net, images, CLASSES, create_graph=True, **options).square().sum()

    value().backward()
    weight = net.get_parameter(weight)
    slope = finite_difference(value, weight, middle(weight))
    assert slope != 0
    assert abs(slope - weight.grad[middle(weight)]) < 1e-4 * abs(slope)


def test_the_oracle_is_fused_and_has_no_second_derivative(images):
    """Without which the tests above would show nothing."""
    net, images = Attention(False), images.requires_grad_()
    (slope,) = torch.autograd.grad(net(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="flash_attention.* is not implemented"):
        slope.square().sum().backward()


def test_attention_gives_the_same_map_with_and_without_a_graph(images):
    net = Attention(False)
    fused = explain.gradcam(net, images, CLASSES, "features")
    with_graph = explain.gradcam(net, images, CLASSES, "features", create_graph=True)
    torch.testing.assert_close(with_graph, fused)


# ---------------------------------------------------------------- options of the SHAP explainers

SHAPLEY = pytest.mark.parametrize("explainer", [explain.kernel_shap, explain.gp_shap])
NO_OPTIONS = {
    "no coalitions": ({"coalitions": 0}, "0 coalitions do not determine"),
    "half a coalition": ({"coalitions": 64.5}, "coalitions: a whole number, not 64.5"),
    "patches in two directions": ({"patches": (4, 4)}, r"patches a side: a whole number, not \(4"),
    "patches as a float": ({"patches": 4.0}, "patches a side: a whole number, not 4.0"),
    "a colour without a size": ({"baseline": torch.zeros(3)}, r"baseline: a number, .* not \[3\]"),
    "a grey image": ({"baseline": torch.zeros(8, 8)}, r"baseline: a number, .* not \[8, 8\]"),
    "a larger image": ({"baseline": torch.zeros(3, 9, 9)}, r"\[3, 8, 8\] .* not \[3, 9, 9\]"),
    "a baseline's name": ({"baseline": "mean"}, "baseline: a number or a tensor, not 'mean'"),
    "a baseline of bytes": ({"baseline": torch.zeros(3, 8, 8).byte()}, "not uint8"),
    "a seed": ({"generator": 0}, "generator: torch.Generator.*, not 0"),
}


@SHAPLEY
@pytest.mark.parametrize("options, words", NO_OPTIONS.values(), ids=NO_OPTIONS)
def test_shapley_values_refuse(options, words, explainer, net, images):
    with pytest.raises(ValueError, match=words):
        explainer(net, images, CLASSES, **options)


@SHAPLEY
def test_a_number_as_baseline_is_of_the_images_precision(explainer, net, images):
    net, images, options = net.double(), images.double(), {"patches": np.int64(2), "coalitions": 14}
    rough = torch.full((3, 8, 8), 0.1).double()  # 0.1 in single precision is another number
    rounded = explainer(net, images, CLASSES, baseline=rough, **options)
    whole = torch.full((3, 8, 8), 0.1, dtype=torch.float64)
    found = explainer(net, images, CLASSES, baseline=0.1, **options)
    assert torch.equal(found, explainer(net, images, CLASSES, baseline=whole, **options))
    assert not torch.equal(found, rounded)


@SHAPLEY
def test_a_baseline_may_be_a_colour_with_its_two_sizes(explainer, net, images):
    colour = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    options = {"patches": 2, "coalitions": 14, "generator": generator(0)}
    found = explainer(net, images, CLASSES, baseline=colour, **options)
    whole = explainer(net, images, CLASSES, baseline=colour.expand(3, 8, 8), **options)
    assert torch.equal(found, whole)


NO_REFERENCES = {
    "one without a batch": (torch.zeros(3, 8, 8), r"references: .*give references\[None\]"),
    "none": (torch.zeros(0, 3, 8, 8), "references: 1 or more, not 0"),
    "bytes": (torch.zeros(1, 3, 8, 8).byte(), "references: float, .* not torch.uint8"),
    "larger": (torch.zeros(1, 3, 9, 9), r"not \[3, 9, 9\] for images \[3, 8, 8\]"),
    "an array": (np.zeros((1, 3, 8, 8)), "references: a float tensor .*, not ndarray"),
    "a number": (0.0, "references: a float tensor .*, not float"),
}


@pytest.mark.parametrize("references, words", NO_REFERENCES.values(), ids=NO_REFERENCES)
def test_deep_shap_refuses_references_that_are(references, words, net, images):
    with pytest.raises(ValueError, match=words):
        explain.deep_shap(net, images, CLASSES, references)


# ---------------------------------------------------------------- what works, held to an oracle


@each_explainer
def test_one_image_is_explained_alone(explainer, net, images):
    maps = explainer(net, images[:1], 2)
    torch.testing.assert_close(maps, explainer(net, images, 2)[:1])


def test_one_logits_map_is_its_closed_form(images):
    """Grad-CAM of z = w mean(A) is w A / cells for class 1 and -w A / cells for class 0."""
    net = wrapped(lambda z: z[:, 0], classes=1)
    feature, weight = net.net[:4](images), net.net[-1].weight[0]
    expected = torch.einsum("k,nkhw->nhw", weight, feature) / math.prod(feature.shape[2:])
    for label, sign in ((1, 1), (0, -1)):
        maps = explain.gradcam(net, images, label, rectify=False)
        torch.testing.assert_close(maps, sign * expected.detach())
