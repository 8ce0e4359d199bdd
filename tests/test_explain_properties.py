"""Every explainer, whatever images it is given: the same map, or a ValueError that says why not."""

import functools

import numpy as np
import pytest
import torch
from small_models import at_most_images, generator, small_net, unusual_statistics
from torch import nn

from explain import EXPLAINERS

OPTIONS = {
    **dict.fromkeys(("kernelshap", "gpshap"), {"patches": 2, "coalitions": 8}),
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
}
each_explainer = pytest.mark.parametrize("name", EXPLAINERS)
SIZES = [(4, 4), (5, 9), (9, 4), (16, 7)]


@functools.cache
def network(dtype=torch.float32):
    """Images [N, 3, H, W] of any size to logits [N, 3], with batch-norm, in evaluation mode."""
    return unusual_statistics(small_net()).cpu().to(dtype).eval()


def random_images(n=3, height=8, width=8, dtype=torch.float32):
    return torch.randn(n, 3, height, width, generator=generator(1)).to(dtype)


def maps_of(name, images, classes=1, **options):
    """The explainer's maps; a sampled one always has the same sample."""
    options = {**OPTIONS.get(name, {}), **options}
    if EXPLAINERS[name].sampled:
        options.setdefault("generator", generator(0))
    return EXPLAINERS[name](network(images.dtype), images, classes, **options)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- how many, and of which size


@each_explainer
@pytest.mark.parametrize("height, width", SIZES)
def test_images_of_any_size_have_a_map_each(name, height, width):
    images = random_images(5, height, width)
    maps = maps_of(name, images, [0, 1, 2, 1, 0])
    by_patches = "patches" in OPTIONS.get(name, {})
    assert maps.shape == ((5, 2, 2) if by_patches else (5, height, width))
    assert maps.isfinite().all() and maps.dtype == torch.float32


@each_explainer
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_chunk_of_any_size_and_a_batch_of_one_give_the_same_maps(name, count, monkeypatch):
    images, classes = random_images(5), [0, 1, 2, 1, 0]
    together = maps_of(name, images, classes)
    alone = [maps_of(name, images[k : k + 1], classes[k]) for k in range(5)]
    close(torch.cat(alone), together)
    at_most_images(monkeypatch, count)
    close(maps_of(name, images, classes), together)


@each_explainer
@pytest.mark.parametrize("create_graph", [False, True])
def test_no_images_have_no_maps(name, create_graph):
    assert len(maps_of(name, random_images(0), [], create_graph=create_graph)) == 0


@each_explainer
@pytest.mark.parametrize("sizes", [(3, 0, 8), (3, 8, 0), (3, 0, 0), (0, 8, 8)])
def test_images_without_a_pixel_or_a_channel_are_refused(name, sizes):
    with pytest.raises(ValueError, match="a channel and a pixel or more, not"):
        maps_of(name, torch.zeros(2, *sizes))


# ---------------------------------------------------------------- how they lie in memory


def every_other(images):
    wide = torch.zeros(*images.shape[:2], 16, 16)
    wide[:, :, ::2, ::2] = images
    return wide[:, :, ::2, ::2]


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every other pixel": every_other,
    "a slice of channels": lambda x: torch.cat([x, x], 1)[:, :3],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "with a graph": lambda x: x.clone().requires_grad_() * 1,
    "a parameter": nn.Parameter,
}


@each_explainer
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_how_images_lie_in_memory_does_not_matter(name, layout):
    images = layout(random_images())
    before = images.detach().clone()
    close(maps_of(name, images), maps_of(name, before.contiguous()))
    assert torch.equal(images, before)
    assert not images.is_leaf or images.grad is None


@each_explainer
def test_double_precision_is_kept_and_agrees_with_single(name):
    images = random_images(dtype=torch.float64)
    if (
        name == "smoothgrad"
    ):  # its noise is of the images' precision: images of one colour have none
        images = images[:, :1, :1, :1].expand(-1, 3, 8, 8)
    double = maps_of(name, images)
    assert double.dtype == torch.float64
    close(maps_of(name, images.float()).double(), double, 1e-4)


STRANGE_TENSORS = {
    "sparse": lambda x: x.to_sparse(),
    "sparse rows": lambda x: x.to_sparse(sparse_dim=1),
    "nested": lambda x: torch.nested.nested_tensor([*x], layout=torch.jagged),
    "mkldnn": lambda x: x.to_mkldnn(),
}


@each_explainer
@pytest.mark.parametrize("strange", STRANGE_TENSORS.values(), ids=STRANGE_TENSORS)
def test_tensors_that_are_not_dense_are_refused(name, strange):
    with pytest.raises(ValueError, match="images: a dense tensor"):
        maps_of(name, strange(random_images()))


@each_explainer
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int16])
def test_numbers_that_a_network_cannot_take_are_refused(name, dtype):
    with pytest.raises(ValueError, match=f"images: float, as the model takes them, not {dtype}"):
        EXPLAINERS[name](network(), random_images().to(dtype), 1)


@each_explainer
def test_classes_that_are_not_dense_are_refused(name):
    with pytest.raises(ValueError, match="classes: a dense tensor"):
        maps_of(name, random_images(), torch.tensor([0, 1, 2]).to_sparse())


# ---------------------------------------------------------------- which values they have


@each_explainer
@pytest.mark.parametrize("value", [0.0, 0.3, -1e-30, 1e6])
def test_images_of_one_value_have_finite_maps(name, value):
    images = torch.full((2, 3, 8, 8), value)
    assert maps_of(name, images).isfinite().all()
    assert maps_of(name, images, create_graph=True).isfinite().all()


@pytest.mark.parametrize("name", ["kernelshap", "gpshap", "deepshap", "integrated_gradients"])
def test_an_image_that_is_the_reference_has_a_blank_map(name):
    assert not maps_of(name, torch.zeros(2, 3, 8, 8)).any()


@each_explainer
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_pixel_that_is_no_number_spoils_no_other_images_map(name, value):
    images = random_images()
    expected = maps_of(name, images)
    images[1, 0, 2, 2] = value
    maps = maps_of(name, images)
    close(maps[[0, 2]], expected[[0, 2]])
    assert maps.shape == expected.shape


# ---------------------------------------------------------------- references and baselines

REFERENCES = {"kernelshap": "baseline", "gpshap": "baseline", "integrated_gradients": "baseline"}
each_baseline = pytest.mark.parametrize("name", REFERENCES)
GOOD = {
    "a number": lambda x: (0.2, torch.full_like(x[:1], 0.2)),
    "a whole number": lambda x: (1, torch.ones_like(x[:1])),
    "a tensor of a number": lambda x: (torch.tensor(0.2), torch.full_like(x[:1], 0.2)),
    "an image": lambda x: (x[0], x[:1]),
    "a grey image": lambda x: (x[0, :1], x[:1, :1].expand(1, 3, 8, 8)),
    "a colour": lambda x: (x[0, :, :1, :1], x[:1, :, :1, :1].expand(1, 3, 8, 8)),
    "an array": lambda x: (x[0].numpy(), x[:1]),
    "double precision": lambda x: (x[0].double(), x[:1]),
    "channels_last": lambda x: (x.contiguous(memory_format=torch.channels_last), x),
}


@each_baseline
@pytest.mark.parametrize("given", GOOD.values(), ids=GOOD)
def test_a_baseline_may_be(name, given):
    images = random_images()
    baseline, whole = given(random_images(2, dtype=torch.float32) + 0.5)
    close(maps_of(name, images, baseline=baseline), maps_of(name, images, baseline=whole))


BAD = {
    "a number too large": 10**400,
    "a complex number": 1j,
    "complex": torch.zeros(3, 8, 8, dtype=torch.complex64),
    "bytes": torch.zeros(3, 8, 8, dtype=torch.uint8),
    "a colour without a size": torch.zeros(3),
    "an image without channels": torch.zeros(8, 8),
    "five dimensions": torch.zeros(1, 1, 3, 8, 8),
    "larger": torch.zeros(3, 9, 9),
    "transposed": torch.zeros(1, 8, 8, 3),
    "of more channels": torch.zeros(4, 8, 8),
    "of no pixel": torch.zeros(3, 0, 8),
    "no image": torch.zeros(0, 3, 8, 8),
    "sparse": torch.zeros(1, 3, 8, 8).to_sparse(),
    "mkldnn": torch.zeros(1, 3, 8, 8).to_mkldnn(),
    "a name": "mean",
    "names": np.array(["mean"]),
    "a dict": {"mean": 0.0},
    "ragged": [[0.0], [0.0, 1.0]],
    "a module": nn.Linear(1, 1),
}


@each_baseline
@pytest.mark.parametrize("baseline", BAD.values(), ids=BAD)
def test_a_baseline_is_refused_that_is(name, baseline):
    with pytest.raises(ValueError, match="baseline|set of baselines"):
        maps_of(name, random_images(), baseline=baseline)


@pytest.mark.parametrize("references", BAD.values(), ids=BAD)
def test_references_are_refused_that_are_no_images_of_this_size(references):
    with pytest.raises(ValueError, match="references"):
        maps_of("deepshap", random_images(), references=references)


COUNTS = {"kernelshap": "patches", "gpshap": "coalitions", "smoothgrad": "samples"}
COUNTS["integrated_gradients"] = "steps"


@pytest.mark.parametrize("name, option", COUNTS.items())
@pytest.mark.parametrize("count", [0, -1, 2.5, True, "4", (4, 4), float("nan"), 1j, [2], b"2"])
def test_a_count_is_refused_that_is_no_whole_number_from_1_on(name, option, count):
    with pytest.raises(ValueError, match="a whole number|do not fit|do not determine"):
        maps_of(name, random_images(), **{option: count})


# ---------------------------------------------------------------- what the network returns


@each_explainer
@pytest.mark.parametrize("wrong", [lambda z: z.to_sparse(), lambda z: z.long(), lambda z: z[:, :0]])
def test_an_answer_without_logits_is_refused(name, wrong):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, images):
            return wrong(self.net(images))

    with pytest.raises(ValueError, match="not logits|has 0 classes|has no rule for"):
        EXPLAINERS[name](Wrong(), random_images(), 1, **OPTIONS.get(name, {}))
