"""Data: what is drawn is what is said of it; what is read is what was written."""
import shutil
import time

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, tiny_arrays
from PIL import Image

import data


@pytest.fixture(scope="module")
def shapes():
    return data.shapes()


def test_shapes_are_the_same_for_a_seed_and_drawn_in_three_seconds(shapes):
    began = time.process_time()
    again = data.shapes()
    assert time.process_time() - began < 3
    for part in ("train_images", "train_labels", "test_images", "test_labels", "test_masks"):
        assert torch.equal(getattr(shapes, part), getattr(again, part))
    assert not torch.equal(data.shapes(seed=1, n_train=100, n_test=100).test_images, data.shapes(n_train=100, n_test=100).test_images)


def test_shapes_hold_what_is_promised(shapes):
    assert shapes.train_images.shape == (10_000, 3, 32, 32) and shapes.train_images.dtype == torch.uint8
    assert shapes.test_images.shape == (2_000, 3, 32, 32) and shapes.test_masks.shape == (2_000, 32, 32)
    assert shapes.train_labels.bincount().tolist() == [1000] * 10 and shapes.test_labels.bincount().tolist() == [200] * 10
    area = shapes.test_masks.float().mean((1, 2))
    assert area.min() >= 0.05 and area.max() <= 0.25
    assert area.quantile(0.1) < 0.07 and area.quantile(0.9) > 0.14  # the whole range is used


def test_objects_lie_everywhere_and_stand_out(shapes):
    masks, images = shapes.test_masks.float(), shapes.test_images.float() / 255
    grid = torch.arange(32) + 0.5
    cx = (masks.sum(1) * grid).sum(1) / masks.sum((1, 2))
    assert abs(cx.mean() - 16) < 0.5 and cx.min() < 6 and cx.max() > 26
    inside = (images * masks[:, None]).sum((2, 3)) / masks.sum((1, 2))[:, None]
    outside = (images * (1 - masks[:, None])).sum((2, 3)) / (1 - masks).sum((1, 2))[:, None]
    assert ((inside - outside).norm(dim=1) > 0.2).float().mean() > 0.97


def test_shapes_cannot_be_told_by_a_linear_model(shapes):
    x = shapes.train_images.flatten(1).float() / 255
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ torch.eye(10)[shapes.train_labels])
    test = torch.cat([shapes.test_images.flatten(1).float() / 255, torch.ones(2000, 1)], 1)
    assert ((test @ weights).argmax(1) == shapes.test_labels).float().mean() < 0.3


def test_mean_and_std_are_numpys(shapes):
    images = shapes.test_images
    mean, std = data.mean_std(images)
    exact = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, exact.std((0, 2, 3)), rtol=1e-10)
    normal = data.normalise(images.float() / 255, mean, std)
    assert normal.mean((0, 2, 3)).abs().max() < 1e-4 and (normal.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_validation_part_is_held_out():
    for n, held in ((100, 10), (60_000, 2_000), (5, 1)):
        trained_on, held_out = data.validation_split(n, seed=3)
        assert len(held_out) == held and sorted([*trained_on.tolist(), *held_out.tolist()]) == list(range(n))
    assert not torch.equal(data.validation_split(100, 0)[1], data.validation_split(100, 1)[1])


def test_augmentation_shifts_and_mirrors_and_nothing_else(shapes):
    images = shapes.test_images[:40]
    assert torch.equal(data.augment(images, 0, False), images)
    torch.manual_seed(0)
    mirrored = data.augment(images, 0, True)
    kinds = [torch.equal(m, i) + 2 * torch.equal(m, i.flip(-1)) for m, i in zip(mirrored, images)]
    assert set(kinds) == {1, 2}
    shifted = data.augment(images, 2, False)
    padded = torch.nn.functional.pad(images.float(), [2] * 4, mode="reflect").byte()
    seen = set()
    for s, p in zip(shifted, padded):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(p[:, y : y + 32, x : x + 32], s)]
        assert places
        seen |= set(places)
    assert len(seen) > 10 and shifted.dtype == torch.uint8


@pytest.mark.parametrize("channels, column", [(1, False), (3, False), (1, True), (3, True)])
def test_npz_grey_or_rgb_labels_flat_or_in_a_column(tmp_path, channels, column):
    arrays = tiny_arrays(channels=channels)
    if column:
        arrays = {key: value[:, None] if "labels" in key else value for key, value in arrays.items()}
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = data.load("mine.npz", tmp_path)
    assert dataset.train_images.shape == (240, channels, 16, 16) and dataset.train_labels.shape == (240,)
    assert np.array_equal(dataset.test_images[7].permute(1, 2, 0).numpy().squeeze(), arrays["test_images"][7])
    assert dataset.classes == ["0", "1", "2"] and dataset.test_masks is None and not dataset.crop and not dataset.flip
    assert data.load("mine.npz", tmp_path, 24).train_images.shape == (240, channels, 24, 24)


def test_folder_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    for split, n in (("train", 3), ("test", 2)):
        for name, value in (("dark", 20), ("light", 220)):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for k in range(n):
                Image.new("L", (40, 30), value + k).save(tmp_path / "pets" / split / name / f"{k}.{'png' if k else 'jpg'}")
    dataset = data.load(tmp_path / "pets", tmp_path / "kept", 16)
    assert dataset.classes == ["dark", "light"] and dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train_images.shape == (6, 3, 16, 16) and dataset.test_images[3].unique().tolist() == [221]
    with monkeypatch.context() as patch:
        patch.setattr(data, "_decode", None)  # a second start decodes nothing
        assert torch.equal(data.load(tmp_path / "pets", tmp_path / "kept", 16).train_images, dataset.train_images)
    Image.new("L", (40, 30), 99).save(tmp_path / "pets" / "test" / "light" / "1.png")
    assert data.load(tmp_path / "pets", tmp_path / "kept", 16).test_images[3].unique().tolist() == [99]


def test_sixteen_bit_grey_is_scaled_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(data.read_image(tmp_path / "x.png").convert("RGB"))[0, :, 0].tolist() == [0, 1, 127, 255]


def test_a_users_own_file_is_not_overwritten_by_the_decoded_folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "cat").mkdir(parents=True)
        for k in range(2):
            Image.new("L", (16, 16)).save(tmp_path / "pets" / split / "cat" / f"{k}.png")
    np.savez(tmp_path / "pets_32.npz", mine=1)
    with pytest.raises(data.UserError, match="file of yours"):
        data.load(tmp_path / "pets", tmp_path)
    with np.load(tmp_path / "pets_32.npz") as arrays:
        assert arrays.files == ["mine"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(data.UserError, match="No space"):
        data._keep(tmp_path / "x.npz", {})
    assert not list(tmp_path.iterdir())


def test_masks_are_resized_with_their_images():
    dataset = data.load("shapes", image_size=48)
    assert dataset.test_images.shape[-2:] == (48, 48) and dataset.test_masks.shape[-2:] == (48, 48)
    assert abs(dataset.test_masks.float().mean() - data.shapes().test_masks.float().mean()) < 0.01


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real data sets are not on this machine")
def test_mnist_is_verified_decoded_and_kept(tmp_path):
    shutil.copytree(REAL_DATA / "MNIST", tmp_path / "MNIST")
    dataset = data.load("mnist", tmp_path)
    assert dataset.train_images.shape == (60_000, 1, 28, 28) and len(dataset.test_labels) == 10_000
    assert not dataset.crop and not dataset.flip
    mean, std = data.mean_std(dataset.train_images)
    assert abs(mean[0] - 0.1307) < 1e-4 and abs(std[0] - 0.3081) < 1e-4
    shutil.rmtree(tmp_path / "MNIST")
    assert torch.equal(data.load("mnist", tmp_path).test_images, dataset.test_images)


def test_cifar10_kept_as_npz_is_found_first(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **tiny_arrays(side=32, k=3))
    dataset = data.load("cifar10", tmp_path)
    assert dataset.classes[3] == "cat" and dataset.crop == 2 and dataset.flip and len(dataset.train_labels) == 240


def test_a_picture_lies_as_its_camera_was_held(tmp_path):
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(data.read_image(tmp_path / "a.png")), np.rot90(np.asarray(picture), -1))
    exif[0x011A] = 1.5
    whole = exif.tobytes()
    for written in [b"nonsense", *(whole[:n] + b"\x0d" + whole[n + 1 :] for n in range(len(whole)))]:
        picture.save(tmp_path / "b.png", exif=written)
        assert np.array_equal(np.sort(np.asarray(data.read_image(tmp_path / "b.png")), None), np.sort(np.asarray(picture), None))


def test_a_folder_called_as_a_data_set_is_refused(tmp_path):
    (tmp_path / "gtsrb" / "train" / "a").mkdir(parents=True)
    with pytest.raises(data.UserError, match="rename it"):
        data.load(str(tmp_path / "gtsrb"), tmp_path)


def test_a_digest_is_of_images_and_labels_in_their_order(tmp_path):
    arrays, digests = tiny_arrays(), []
    changes = [{}, {}, {"train_images": arrays["train_images"][::-1].copy()}, {"train_labels": np.roll(arrays["train_labels"], 1)},
               {"test_images": arrays["test_images"][::-1].copy()}, {"test_labels": np.roll(arrays["test_labels"], 1)}]
    for change in changes:
        np.savez(tmp_path / "a.npz", **arrays | change)
        digests.append(data.load(str(tmp_path / "a.npz")).digest)
    dataset = data.load(str(tmp_path / "a.npz"))
    for patients in (torch.arange(240), torch.arange(240) // 2):
        digests.append(data.replace(dataset, train_groups=patients).digest)
    assert digests[0] == digests[1] and len(set(digests)) == 7


def test_images_are_counted_and_resized_a_few_at_a_time(monkeypatch):
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    whole = data.mean_std(images), data.resize(data.Dataset(images, torch.zeros(7), images, torch.zeros(7), ["a"]), 4).train_images
    monkeypatch.setattr(data, "some", lambda images: 2)
    assert data.mean_std(images) == whole[0] and torch.equal(data.resize(data.Dataset(images, torch.zeros(7), images, torch.zeros(7), ["a"]), 4).train_images, whole[1])
