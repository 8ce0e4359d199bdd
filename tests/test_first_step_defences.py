"""The defences' functions called with what people pass: it works, or a ValueError says what is
wanted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import Wrapped, generator, small_net
from torch import nn

import defend
import models
from defences import OnPixels, anomaly_index, predict, share_predicted_as
from defences.batchnorm import cfn, rebn
from defences.disagreement import disagreement
from defences.neural_cleanse import neural_cleanse
from defences.neuroninspect import heatmaps, neuroninspect
from defences.prune import channel_scores, prune
from defences.traces import inspect


def wrapped(wrap, classes=3):
    """The network, its answer wrapped in something else than a tensor of logits."""
    return Wrapped(small_net(classes), wrap)


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8, generator=generator(1))


def searched(model, images, *args, **options):
    """The masks that a search of three rounds finds."""
    options = {"rounds": 3, "round_images": 4} | options
    return neural_cleanse(model, images, *args, **options).masks


def pruned(model, images):
    return torch.tensor([step["clean_accuracy"] for step in prune(model, images, 1, images)[1]])


def findings(model, images):
    return torch.tensor(len(inspect(model, images)))


CALLS = {
    "neural_cleanse": searched,
    "neuroninspect": lambda model, images: neuroninspect(model, images)[1],
    "disagreement": disagreement,
    "prune": pruned,
    "inspect": findings,
    "predict": predict,
}
each_defence = pytest.mark.parametrize("defence", CALLS.values(), ids=CALLS)
each_with_rebn = pytest.mark.parametrize("defence", [*CALLS.values(), rebn], ids=[*CALLS, "rebn"])

# ---------------------------------------------------------------- models

OUTPUTS = {
    "a tuple": lambda z: (z, z.sum()),
    "a dict": lambda z: {"logits": z, "features": z.repeat(1, 5)},
    "a dataclass": lambda z: SimpleNamespace(logits=z, loss=None),
}


@each_defence
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_logits_are_found_in(output, defence, net, images):
    assert torch.equal(defence(wrapped(output), images), defence(net, images))


@pytest.mark.parametrize("defence", [searched, disagreement, pruned, findings, predict])
@pytest.mark.parametrize("output", [lambda z: z, lambda z: z[:, 0]], ids=["[N, 1]", "[N]"])
def test_one_logit_is_two_classes(output, defence, images):
    two = wrapped(lambda z: torch.cat([-1 * z, z], 1), classes=1)
    assert torch.equal(defence(wrapped(output, classes=1), images), defence(two, images))


@each_with_rebn
@pytest.mark.parametrize("model", [small_net, "cnn", None])
def test_what_is_no_module_is_refused(model, defence, images):
    with pytest.raises(ValueError, match="the model is a torch.nn.Module, not "):
        defence(model, images)


@pytest.mark.parametrize("defence", [searched, heatmaps, disagreement, pruned, predict, rebn])
def test_a_model_on_another_device_is_refused(defence, images):
    with pytest.raises(ValueError):
        defence(small_net().to("meta"), images)


@each_defence
def test_an_output_without_logits_is_refused(defence, images):
    with pytest.raises(ValueError, match=r"not logits \[\d+, K\]"):
        defence(wrapped(lambda z: (torch.cat([z, z], 1), z)), images)


# ---------------------------------------------------------------- images

BYTES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
NO_IMAGES = {
    "none": (torch.zeros(0, 3, 8, 8), "[12] or more, not 0"),
    "one without a batch": (torch.zeros(3, 8, 8), r"not \[3, 8, 8\]: give .*images\[None\]"),
    "bytes": (BYTES, r"not torch.uint8: .*images.float\(\) / 255"),
    "an array": (np.zeros((4, 3, 8, 8), np.float32), "not ndarray: see torch.from_numpy"),
    "grey": (torch.zeros(4, 1, 8, 8), r"does not take images \[\d+, 1, 8, 8\]"),
    "double": (torch.zeros(4, 3, 8, 8).double(), "of torch.float64 on cpu, its weights being"),
}


@each_with_rebn
@pytest.mark.parametrize("given, words", NO_IMAGES.values(), ids=NO_IMAGES)
def test_images_are_refused_that_are(given, words, defence, net):
    if defence is predict and len(given) == 0:
        assert predict(net, given).shape == (0,)
        return
    with pytest.raises(ValueError, match=words):
        defence(net, given)


@pytest.mark.parametrize("defence", [CALLS["neuroninspect"], disagreement, pruned, searched, rebn])
def test_one_image_is_enough(defence, net, images):
    assert defence(net, images[:1]) is not None


def test_of_one_image_every_channel_would_be_constant(net, images):
    with pytest.raises(ValueError, match="images: 2 or more, not 1"):
        inspect(net, images[:1])


@each_defence
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_what_is_around_the_call_changes_nothing(around, defence, net, images):
    expected = defence(net, images)
    with around():
        found = defence(net, images.clone())
    assert torch.equal(found, expected)


@each_with_rebn
def test_a_refusal_leaves_the_model_as_it_was(defence, net):
    net.train()
    with pytest.raises(ValueError):
        defence(net, torch.zeros(3, 1, 8, 8))
    for module in net.modules():
        assert module.training and all(weight.requires_grad for weight in module.parameters())
        assert not module._forward_hooks and not module._forward_pre_hooks


# ---------------------------------------------------------------- Neural Cleanse

MEAN, STD = [0.5] * 3, [0.25] * 3


@pytest.mark.parametrize("change", [lambda x: (x - 0.5) / 0.25, lambda x: x * 255])
def test_images_outside_0_to_1_are_told_how_to_be_given(change, net, images):
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\] here, and these go from .*OnPixels"):
        searched(net, change(images))


def test_as_it_is_told_normalised_images_are_searched(net, images):
    assert searched(OnPixels(net, MEAN, STD), images).shape == (3, 1, 8, 8)


def test_pixels_that_are_no_numbers_are_refused(net, images):
    images[1, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        searched(net, images)


TARGETS = {
    "a list": [2, 0],
    "an array": np.array([2, 0]),
    "int32": torch.tensor([2, 0], dtype=torch.int32),
}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_targets_may_be_given_as(targets, net, images):
    expected = searched(net, images, torch.tensor([2, 0]))
    assert torch.equal(searched(net, images, targets), expected)


def test_one_target_may_be_a_number(net, images):
    assert torch.equal(searched(net, images, 2), searched(net, images, torch.tensor([2])))


NO_SEARCH = {
    "a class there is not": ({"targets": [0, 3]}, "there is no class 3"),
    "a negative class": ({"targets": [-1]}, "there is no class -1"),
    "no target": ({"targets": []}, "targets: one class or more, or None"),
    "a target's name": ({"targets": "cat"}, "classes: a whole number, not str"),
    "no rounds": ({"rounds": 0}, "rounds: a whole number from 1 on, not 0"),
    "rounds without images": ({"round_images": 0}, "round_images: a whole number from 1 on, not 0"),
    "half a round": ({"rounds": 1.5}, "rounds: a whole number from 1 on, not 1.5"),
    "an unknown precision": ({"precision": "fp16"}, "precision: float32 or bf16, not 'fp16'"),
    "an unknown start": ({"start": "white"}, "constant or random, not 'white'"),
}


@pytest.mark.parametrize("options, words", NO_SEARCH.values(), ids=NO_SEARCH)
def test_a_search_refuses(options, words, net, images):
    with pytest.raises(ValueError, match=words):
        searched(net, images, **options)


class WithoutGradient(Wrapped):
    """A network whose backbone runs under no_grad: a search would never move its patterns."""

    def forward(self, images):
        with torch.no_grad():
            features = self.net[:5](images)
        return self.net[5:](features)


@pytest.mark.parametrize("name", ["neural_cleanse", "neuroninspect"])
def test_a_backbone_that_no_gradient_reaches_is_refused(name, images):
    with pytest.raises(ValueError, match="no gradient flows back from the logits"):
        CALLS[name](WithoutGradient(small_net(), None), images)


def test_neural_cleanse_is_found_in_defend():
    assert defend.neural_cleanse is neural_cleanse


# ---------------------------------------------------------------- the others


def test_noise_may_be_one_number(net, images):
    for one, several in ((0, (0,)), (2.0, (2.0,))):
        expected = neuroninspect(net, images, noise=several)[1]
        assert torch.equal(neuroninspect(net, images, noise=one)[1], expected)


@pytest.mark.parametrize("noise", [(), -1, (2.0, float("nan"))])
def test_noise_that_is_none_is_refused(noise, net, images):
    with pytest.raises(ValueError, match="noise: numbers from 0 on, not"):
        neuroninspect(net, images, noise=noise)


def test_two_weights_for_three_features_are_refused(net, images):
    with pytest.raises(ValueError, match="weights: 3 numbers"):
        neuroninspect(net, images, (1, 1))


def test_of_two_classes_none_is_an_anomaly(images):
    with pytest.raises(ValueError, match="of two classes none is an anomaly"):
        neuroninspect(small_net(2), images)


def test_heatmaps_of_bytes_are_refused(net):
    with pytest.raises(ValueError, match="not torch.uint8"):
        heatmaps(net, BYTES)


@pytest.mark.parametrize("explainers", ["gradcam", ("gradcam",), ("gradcam", "gradient", "gpshap")])
def test_other_than_two_explainers_are_refused(explainers, net, images):
    with pytest.raises(ValueError, match="explainers: two of gradcam"):
        disagreement(net, images, explainers)


def test_an_unknown_explainer_is_refused(net, images):
    with pytest.raises(ValueError, match="explainers: gradcam or .*not 'lime'"):
        disagreement(net, images, ("gradcam", "lime"))


def test_a_strangers_channels_are_looked_at_where_gradcam_does(net, images):
    assert torch.equal(channel_scores(net, images), channel_scores(net, images, net[4]))


NO_PRUNING = {
    "one label too few": ({"labels": [0, 1, 2]}, r"for each of 4 images, not \[3\]"),
    "one-hot labels": ({"labels": torch.eye(4)}, "of one-hot or soft labels"),
    "no stamped images": ({"stamped": torch.zeros(0, 3, 8, 8)}, "stamped images: 1 or more"),
    "an unknown norm": ({"norm": "l3"}, "norm: linf or l2 or l1, not 'l3'"),
    "a layer that does not run": ({"layer": nn.ReLU()}, "ran 0 times"),
    "a layer without maps": ({"layer": "7"}, r"gives \[3\], not a feature map"),
    "two layers": ({"layer": ["0", "3"]}, "one layer, not 2"),
}


@pytest.mark.parametrize("options, words", NO_PRUNING.values(), ids=NO_PRUNING)
def test_pruning_refuses(options, words, net, images):
    given = {"labels": [0, 1, 2, 0], "stamped": images} | options
    with pytest.raises(ValueError, match=words):
        prune(net, images, **given)


def test_a_column_of_labels_is_no_table_of_comparisons(net, images):
    """[N] == [N, 1] is [N, N], whose mean looks like a share."""
    predicted = predict(net, images)
    assert share_predicted_as(net, images, predicted[:, None]) == 1
    assert share_predicted_as(net, images, predicted.tolist()) == 1


@pytest.mark.parametrize("repair", [lambda net, images: rebn(net, images), lambda net, _: cfn(net)])
def test_a_network_without_batch_norm_has_nothing_to_repair(repair, images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="the model has no batch-norm: nothing to repair"):
        repair(net, images)


def test_the_plain_network_may_be_a_network(images):
    network, plain = models.build("cnn", 3, 4, 32), models.build("cnn", 3, 5, 32)
    images = torch.rand(4, 3, 32, 32, generator=generator(1))
    by_weights = inspect(network, images, plain.state_dict())
    assert inspect(network, images, plain) == by_weights
    assert "unknown parts" in [finding.check for finding in by_weights]


@pytest.mark.parametrize("values", [[1.0, 2.0, 9.0], (1, 2, 9), np.array([1.0, 2.0, 9.0])])
def test_an_index_is_of_any_numbers(values):
    expected = anomaly_index(torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64))
    assert torch.equal(anomaly_index(values), expected)


@pytest.mark.parametrize("values", [[], 3.0, [[1.0, 2.0]]])
def test_an_index_of_no_list_of_numbers_is_refused(values):
    with pytest.raises(ValueError, match="takes a value a class"):
        anomaly_index(values)
