"""Data sets by name; statistics, splits and augmentation."""

import shutil
import types

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, tiny_arrays
from PIL import Image

import data
from cli import UserError
from dataset import Dataset


@pytest.fixture(scope="module")
def shapes():
    return data.shapes(n_train=100, n_test=2000)


def some_images(n=7):
    """A Dataset of n training images of noise, which are the test images, too."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Dataset(images, torch.zeros(n), images, torch.zeros(n), ["a"])


# ---------------------------------------------------------------- by name


def test_a_file_is_looked_for_in_the_data_folder_too(tiny):
    assert data.load(tiny.name, tiny.parent).train_images.shape == (240, 3, 16, 16)


def test_an_npz_is_resized_when_asked(tiny):
    assert data.load(str(tiny), image_size=24).train_images.shape == (240, 3, 24, 24)


def test_a_folder_is_a_data_set(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            Image.new("L", (40, 30)).save(folder / "0.png")
    dataset = data.load(tmp_path / "pets", tmp_path)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.train_images.shape == (2, 3, 32, 32)
    assert (tmp_path / "pets_32_crop.npz").exists()


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="unknown data set 'imagenet': one of shapes, mnist, "):
        data.load("imagenet")


def test_masks_are_resized_with_their_images():
    resized = data.load("shapes", image_size=48)
    assert resized.test_images.shape[-2:] == (48, 48)
    assert resized.test_masks.shape[-2:] == (48, 48)
    area_at_32 = data.shapes().test_masks.float().mean()
    assert abs(resized.test_masks.float().mean() - area_at_32) < 0.01


def test_relabelled_images_are_rgb_with_the_networks_class_numbers(tiny):
    dataset = data.load(str(tiny))
    dataset.train_images = dataset.train_images[:, :1]
    dataset.test_images = dataset.test_images[:, :1]
    relabelled = data.relabelled(dataset, ["x", "2", "0", "1"])
    assert relabelled.train_images.shape == (240, 3, 16, 16)
    assert relabelled.train_labels[:3].tolist() == [2, 3, 1]
    assert relabelled.classes == ["x", "2", "0", "1"]


def test_a_class_that_the_network_does_not_know_is_refused(tiny):
    with pytest.raises(UserError, match="knows no class '2'"):
        data.relabelled(data.load(str(tiny)), ["0", "1"])


# ---------------------------------------------------------------- published data sets


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real data sets are not on this machine")
def test_mnist_is_decoded_and_kept(tmp_path):
    shutil.copytree(REAL_DATA / "MNIST", tmp_path / "MNIST")
    dataset = data.load("mnist", tmp_path)
    assert dataset.train_images.shape == (60_000, 1, 28, 28)
    assert len(dataset.test_labels) == 10_000
    assert dataset.crop == 0
    assert not dataset.flip
    mean, std = data.mean_std(dataset.train_images)
    assert mean[0] == pytest.approx(0.1307, abs=1e-4)
    assert std[0] == pytest.approx(0.3081, abs=1e-4)
    shutil.rmtree(tmp_path / "MNIST")
    assert torch.equal(data.load("mnist", tmp_path).test_images, dataset.test_images)


def test_cifar10_kept_as_npz_is_found_first(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **tiny_arrays(side=32, k=3))
    dataset = data.load("cifar10", tmp_path)
    assert len(dataset.train_labels) == 240
    assert dataset.classes[3] == "cat"
    assert dataset.crop == 2
    assert dataset.flip


@pytest.fixture
def gtsrb_folder(tmp_path):
    """A few signs of several sizes, laid out as torchvision unpacks GTSRB."""
    rng = np.random.default_rng(0)
    base = tmp_path / "gtsrb"
    for k in range(43):
        folder = base / "GTSRB" / "Training" / f"{k:05}"
        folder.mkdir(parents=True)
        for n in range(2):
            pixels = rng.integers(0, 256, (20 + k, 25 + n, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"00000_{n:05}.ppm")
    test = base / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for k in range(5):
        Image.new("RGB", (64, 30), (10 * k, 0, 200)).save(test / f"{k:05}.ppm")
        lines.append(f"{k:05}.ppm;64;30;0;0;1;1;{k}")
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_gtsrb_is_decoded_at_the_size_asked_for(gtsrb_folder):
    dataset = data.load("gtsrb", gtsrb_folder, 48)
    assert dataset.train_images.shape == (86, 3, 48, 48)
    assert dataset.train_labels.bincount().tolist() == [2] * 43
    assert dataset.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.test_images[3].float().mean((1, 2)).tolist() == [30, 0, 200]
    assert dataset.classes[14] == "stop"
    assert not dataset.flip


def test_gtsrb_is_kept_under_its_size(gtsrb_folder):
    first = data.load("gtsrb", gtsrb_folder, 48)
    assert (gtsrb_folder / "gtsrb_48.npz").exists()
    assert not (gtsrb_folder / "gtsrb.npz").exists()
    shutil.rmtree(gtsrb_folder / "gtsrb")
    assert torch.equal(data.load("gtsrb", gtsrb_folder, 48).train_images, first.train_images)


def test_gtsrb_of_32_pixels_is_resized_where_there_is_nothing_better(tmp_path, capsys):
    np.savez(tmp_path / "gtsrb.npz", **tiny_arrays(side=32))
    assert data.load("gtsrb", tmp_path, 48).train_images.shape == (240, 3, 48, 48)
    assert "of 32 px, are resized" in capsys.readouterr().err
    assert not (tmp_path / "gtsrb_48.npz").exists()


def test_a_failed_download_is_one_line_and_leaves_no_folder(tmp_path):
    def offline(root, train, download):
        (root / "MNIST" / "raw").mkdir(parents=True)
        raise RuntimeError("no network\nand more")

    with pytest.raises(UserError, match=r"\(no network\): put mnist.npz there"):
        data.published(tmp_path / "data", "mnist", offline)
    assert not (tmp_path / "data").exists()


def test_what_torchvision_prints_is_not_shown(tmp_path, capsys):
    def talkative(root, train, download):
        print("Downloading")
        images = np.zeros((4, 8, 8), np.uint8)
        return types.SimpleNamespace(data=images, targets=[0, 1, 0, 1], classes=["a", "b"])

    data.published(tmp_path, "mnist", talkative)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- statistics


def test_mean_and_std_are_numpys(shapes):
    mean, std = data.mean_std(shapes.test_images)
    exact = shapes.test_images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, exact.std((0, 2, 3)), rtol=1e-10)


def test_a_channel_of_one_colour_has_std_one():
    mean, std = data.mean_std(torch.full((3, 1, 4, 4), 51, dtype=torch.uint8))
    assert mean == pytest.approx([0.2])
    assert std == [1.0]


def test_normalised_images_have_mean_0_and_std_1(shapes):
    mean, std = data.mean_std(shapes.test_images)
    normal = data.normalise(shapes.test_images.float() / 255, mean, std)
    assert normal.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normal.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_images_are_counted_a_few_at_a_time(monkeypatch):
    images = some_images().train_images
    at_once = data.mean_std(images)
    monkeypatch.setattr(data, "chunk_length", lambda images: 2)
    assert data.mean_std(images) == at_once


def test_images_are_resized_a_few_at_a_time(monkeypatch):
    at_once = data.resize(some_images(), 4).train_images
    monkeypatch.setattr(data, "chunk_length", lambda images: 2)
    assert torch.equal(data.resize(some_images(), 4).train_images, at_once)


def test_a_smaller_image_is_a_mean_of_pixels_not_some_of_them():
    """Stripes become grey, though plain bilinear would read their dark pixels alone."""
    stripes = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    stripes[..., 0::4] = stripes[..., 3::4] = 255
    small = data.resize_images(stripes, 8)
    assert small.shape == (2, 3, 8, 8)
    assert (small.float() - 127.5).abs().max() < 20


def test_a_checkpoint_knows_its_data_by_digest_and_class_names():
    dataset = some_images()
    assert data.is_same_data({"classes": ["a"], "data": dataset.digest}, dataset)
    assert not data.is_same_data({"classes": ["a"], "data": "another"}, dataset)
    assert not data.is_same_data({"classes": ["b"], "data": dataset.digest}, dataset)


def test_a_checkpoint_without_a_digest_knows_its_data_by_mean_and_std():
    dataset = some_images()
    mean, std = data.mean_std(dataset.train_images)
    assert data.is_same_data({"classes": ["a"], "mean": mean, "std": std}, dataset)
    assert not data.is_same_data({"classes": ["a"], "mean": [0.5] * 3, "std": std}, dataset)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("n, size", [(100, 10), (60_000, 2_000), (5, 1)])
def test_a_tenth_is_held_out_at_most_2000(n, size):
    trained_on, held_out = data.validation_split(n, seed=3)
    assert len(held_out) == size
    assert sorted([*trained_on.tolist(), *held_out.tolist()]) == list(range(n))


def test_another_seed_holds_out_other_images():
    first, second = (data.validation_split(100, seed)[1] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_groups_are_held_out_whole():
    groups = torch.arange(300) // 3
    trained_on, held_out = data.validation_split(300, 0, groups)
    assert sorted([*trained_on.tolist(), *held_out.tolist()]) == list(range(300))
    assert len(held_out) == 30
    assert not set(groups[trained_on].tolist()) & set(groups[held_out].tolist())


def test_groups_that_are_all_too_large_are_refused():
    with pytest.raises(UserError, match="too few patients"):
        data.validation_split(20, 0, torch.arange(20) // 10)


# ---------------------------------------------------------------- augmentation


def test_no_augmentation_leaves_images_alone(shapes):
    images = shapes.test_images[:40]
    assert torch.equal(data.augment(images, 0, False), images)


def test_an_image_is_mirrored_or_left_as_it_is(shapes):
    images = shapes.test_images[:40]
    torch.manual_seed(0)
    mirrored = data.augment(images, 0, True)
    same = [torch.equal(m, i) for m, i in zip(mirrored, images)]
    flipped = [torch.equal(m, i.flip(-1)) for m, i in zip(mirrored, images)]
    assert [s != f for s, f in zip(same, flipped)] == [True] * 40
    assert any(same)
    assert any(flipped)


def test_half_of_the_images_are_mirrored():
    images = torch.arange(2).expand(400, 1, 1, 2)
    torch.manual_seed(0)
    share = data.augment(images, 0, True)[:, 0, 0, 0].double().mean()
    assert abs(share - 0.5) < 0.1  # four standard deviations


def test_shifts_reach_both_sides_equally_often():
    """Of an image that says where each pixel was; each shift is one in five along either side."""
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    images = torch.stack([rows, columns]).expand(1000, -1, -1, -1)
    torch.manual_seed(0)
    middle = data.augment(images, 2, False)[:, :, 4, 4] - 4  # [N, 2]
    counts = torch.zeros(5, 5).index_put_(tuple((middle + 2).T), torch.ones(1000), accumulate=True)
    assert abs(counts.sum(0) / 1000 - 0.2).max() < 0.06
    assert abs(counts.sum(1) / 1000 - 0.2).max() < 0.06
    assert counts.min() > 0  # the two directions are drawn by themselves


def test_a_shifted_image_is_a_window_of_the_padded_one(shapes):
    images = shapes.test_images[:40]
    torch.manual_seed(0)
    shifted = data.augment(images, 2, False)
    padded = torch.nn.functional.pad(images.float(), [2] * 4, mode="reflect").byte()
    places_used = set()
    for image, whole in zip(shifted, padded):
        windows = {(y, x): whole[:, y : y + 32, x : x + 32] for y in range(5) for x in range(5)}
        places = [place for place, window in windows.items() if torch.equal(window, image)]
        assert places
        places_used |= set(places)
    assert len(places_used) > 10
    assert shifted.dtype == torch.uint8
