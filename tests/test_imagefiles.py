"""Pictures and arrays on a disk: what is read is what was written, and a mistake is one line."""

import numpy as np
import pytest
import torch
from conftest import tiny_arrays
from PIL import Image

import imagefiles
from cli import UserError


def save_grey(path, value, size=(40, 30)):
    """A picture of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def multi_label_arrays(n_train=240, n_test=90, k=3):
    """Noise, and k labels of 0 and 1 for each image."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        arrays[f"{split}_labels"] = rng.integers(0, 2, (n, k), dtype=np.uint8)
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 16, 16), dtype=np.uint8)
    return arrays


# ---------------------------------------------------------------- one picture


def test_16_bit_grey_is_scaled_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(tmp_path / "x.png")
    image = imagefiles.read_image(tmp_path / "x.png").convert("RGB")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 127, 255]


@pytest.fixture
def ramp():
    """A picture of 6x4 pixels, all of different greys."""
    return Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)


@pytest.fixture
def exif():
    """Tags that say: to be turned by 90 degrees."""
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def test_a_picture_is_turned_as_its_camera_was_held(tmp_path, ramp, exif):
    ramp.save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(imagefiles.read_image(tmp_path / "a.png"))
    assert np.array_equal(turned, np.rot90(np.asarray(ramp), -1))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the tags
def test_damaged_tags_do_not_keep_a_picture_from_being_read(tmp_path, ramp, exif):
    exif[0x011A] = 1.5
    whole = exif.tobytes()
    damaged = [whole[:n] + b"\x0d" + whole[n + 1 :] for n in range(len(whole))]
    for tags in [b"nonsense", *damaged]:
        ramp.save(tmp_path / "b.png", exif=tags)
        pixels = np.asarray(imagefiles.read_image(tmp_path / "b.png"))
        assert np.array_equal(np.sort(pixels, None), np.sort(np.asarray(ramp), None))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n then nothing"])
def test_a_file_that_is_no_picture_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match="x.png cannot be read as an image") as error:
        imagefiles.read_image(tmp_path / "x.png")
    assert "\n" not in str(error.value)


def test_a_picture_that_is_cut_short_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be read as an image"):
        imagefiles.read_image(path)


# ---------------------------------------------------------------- .npz files


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_images_are_grey_or_rgb(tmp_path, channels):
    arrays = tiny_arrays(channels=channels)
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = imagefiles.from_npz(tmp_path / "mine.npz")
    assert dataset.train_images.shape == (240, channels, 16, 16)
    image = dataset.test_images[7].permute(1, 2, 0).numpy().squeeze()
    assert np.array_equal(image, arrays["test_images"][7])


@pytest.mark.parametrize("column", [False, True])
def test_npz_labels_are_flat_or_a_column(tmp_path, column):
    arrays = tiny_arrays()
    flat = arrays["train_labels"].tolist()
    if column:
        for key in ("train_labels", "test_labels"):
            arrays[key] = arrays[key][:, None]
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = imagefiles.from_npz(tmp_path / "mine.npz")
    assert dataset.train_labels.tolist() == flat
    assert dataset.train_labels.dtype == torch.int64


def test_an_npz_without_names_is_named_by_number_and_not_augmented(tiny):
    dataset = imagefiles.from_npz(tiny)
    assert dataset.classes == ["0", "1", "2"]
    assert dataset.test_masks is None
    assert dataset.crop == 0
    assert not dataset.flip


def test_labels_of_0_and_1_for_each_class_are_multi_label(tmp_path):
    arrays = multi_label_arrays()
    validation = np.zeros((2, 16, 16), np.uint8)  # a key of MedMNIST's that is not used
    np.savez(tmp_path / "chestmnist.npz", **arrays, val_images=validation)
    dataset = imagefiles.from_npz(tmp_path / "chestmnist.npz")
    assert dataset.multi_label
    assert dataset.train_labels.dtype == torch.float32
    assert np.array_equal(dataset.train_labels.numpy(), arrays["train_labels"])
    assert dataset.classes == ["0", "1", "2"]


def test_patients_of_an_npz_are_its_groups(tmp_path):
    patients = np.arange(240) // 2
    np.savez(tmp_path / "x.npz", **multi_label_arrays(), train_patients=patients)
    dataset = imagefiles.from_npz(tmp_path / "x.npz")
    assert np.array_equal(dataset.train_groups.numpy(), patients)


ONE_HOT = np.eye(3, dtype=int)[np.arange(240) % 3]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"train_labels": np.full((240, 3), 2)}, "0 and 1"),
        ({"test_labels": np.zeros((90, 4), int)}, "differ in shape"),
        ({"classes": ["a", "b"]}, "2 are named"),
        ({"train_patients": np.zeros(3, int)}, "train_patients"),
        ({"train_labels": ONE_HOT}, "class numbers"),
        (
            {"train_patients": np.arange(240), "test_patients": np.arange(239, 329)},
            "patient 239 is on both sides",
        ),
        ({"train_images": np.uint8(7)}, r"images must be uint8"),
    ],
)
def test_multi_label_arrays_that_do_not_fit_are_refused(tmp_path, change, text):
    np.savez(tmp_path / "x.npz", **multi_label_arrays() | change)
    with pytest.raises(UserError, match=text):
        imagefiles.from_npz(tmp_path / "x.npz")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(UserError, match="No space"):
        imagefiles.keep_npz(tmp_path / "x.npz", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"", b"no data here"])
def test_a_file_without_a_fingerprint_is_nobodys_but_the_users(tmp_path, content):
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    assert imagefiles.fingerprint_of(tmp_path / "x.npz") is None


def test_a_single_array_has_no_fingerprint(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    assert imagefiles.fingerprint_of(tmp_path / "x.npy") is None


# ---------------------------------------------------------------- folders


@pytest.fixture
def pets(tmp_path):
    """A folder of dark and light pictures: three of each to train on, two of each to test."""
    folder = tmp_path / "pets"
    for split, n in (("train", 3), ("test", 2)):
        for name, value in (("dark", 20), ("light", 220)):
            for k in range(n):
                suffix = "png" if k else "jpg"
                save_grey(folder / split / name / f"{k}.{suffix}", value + k)
    return folder


@pytest.fixture
def kept(tmp_path):
    """Where decoded folders are kept."""
    return tmp_path / "kept"


def test_a_folder_has_its_classes_by_name_and_its_images_in_order(pets, kept):
    dataset = imagefiles.from_folder(pets, kept, 16)
    assert dataset.classes == ["dark", "light"]
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train_images.shape == (6, 3, 16, 16)
    assert dataset.test_images[3].unique().tolist() == [221]


def test_a_folder_is_decoded_once(pets, kept, monkeypatch):
    dataset = imagefiles.from_folder(pets, kept, 16)
    monkeypatch.setattr(imagefiles, "read_image", None)  # a second start decodes nothing
    again = imagefiles.from_folder(pets, kept, 16)
    assert torch.equal(again.train_images, dataset.train_images)


def test_a_folder_is_decoded_again_when_a_picture_changes(pets, kept):
    imagefiles.from_folder(pets, kept, 16)
    save_grey(pets / "test" / "light" / "1.png", 99)
    dataset = imagefiles.from_folder(pets, kept, 16)
    assert dataset.test_images[3].unique().tolist() == [99]


def test_a_users_own_file_is_not_overwritten_by_a_decoded_folder(pets, kept):
    kept.mkdir()
    np.savez(kept / "pets_32.npz", mine=1)
    with pytest.raises(UserError, match="file of yours"):
        imagefiles.from_folder(pets, kept, 32)
    with np.load(kept / "pets_32.npz") as arrays:
        assert arrays.files == ["mine"]


def test_a_class_that_only_the_test_images_have_is_refused(pets, kept):
    save_grey(pets / "test" / "zebra" / "0.png", 0)
    with pytest.raises(UserError, match="classes that train has not: zebra"):
        imagefiles.from_folder(pets, kept, 16)


def test_a_folder_without_test_images_is_refused(pets, kept):
    (pets / "test").rename(pets / "elsewhere")
    with pytest.raises(UserError, match="no images in test/CLASS"):
        imagefiles.from_folder(pets, kept, 16)
