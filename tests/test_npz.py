"""Data sets that are one .npz: what other tools write is read, or refused in one line."""

import os
import zipfile

import numpy as np
import pytest
import torch
from conftest import tiny_arrays
from drive_data import HEADERS, header, members_of, npy, with_header, write_npz
from driving import limited

import data
import npzfiles
import npzmembers
from cli import UserError


def multi_label_arrays(n_train=240, n_test=90, k=3):
    """Noise, and k labels of 0 and 1 for each image."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        arrays[f"{split}_labels"] = rng.integers(0, 2, (n, k), dtype=np.uint8)
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 16, 16), dtype=np.uint8)
    return arrays


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_images_are_grey_or_rgb(tmp_path, channels):
    arrays = tiny_arrays(channels=channels)
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = npzfiles.from_npz(tmp_path / "mine.npz")
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
    dataset = npzfiles.from_npz(tmp_path / "mine.npz")
    assert dataset.train_labels.tolist() == flat
    assert dataset.train_labels.dtype == torch.int64


def test_an_npz_without_names_is_named_by_number_and_not_augmented(tiny):
    dataset = npzfiles.from_npz(tiny)
    assert dataset.classes == ["0", "1", "2"]
    assert dataset.test_masks is None
    assert dataset.crop == 0
    assert not dataset.flip


def test_labels_of_0_and_1_for_each_class_are_multi_label(tmp_path):
    arrays = multi_label_arrays()
    validation = np.zeros((2, 16, 16), np.uint8)  # a key of MedMNIST's that is not used
    np.savez(tmp_path / "chestmnist.npz", **arrays, val_images=validation)
    dataset = npzfiles.from_npz(tmp_path / "chestmnist.npz")
    assert dataset.multi_label
    assert dataset.train_labels.dtype == torch.float32
    assert np.array_equal(dataset.train_labels.numpy(), arrays["train_labels"])
    assert dataset.classes == ["0", "1", "2"]


def test_patients_of_an_npz_are_its_groups(tmp_path):
    patients = np.arange(240) // 2
    np.savez(tmp_path / "x.npz", **multi_label_arrays(), train_patients=patients)
    dataset = npzfiles.from_npz(tmp_path / "x.npz")
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
        npzfiles.from_npz(tmp_path / "x.npz")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(UserError, match="No space"):
        npzfiles.keep_npz(tmp_path / "x.npz", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"", b"no data here"])
def test_a_file_without_a_fingerprint_is_nobodys_but_the_users(tmp_path, content):
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    assert npzfiles.fingerprint_of(tmp_path / "x.npz") is None


def test_a_single_array_has_no_fingerprint(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    assert npzfiles.fingerprint_of(tmp_path / "x.npy") is None


# ---------------------------------------------------------------- labels and names


@pytest.fixture
def load(tmp_path, capsys):
    """Function (what is changed in the small data set): (Dataset, what was said)."""

    def load_changed(n=30, **changes):
        arrays = {k: v for k, v in (tiny_arrays(n, 12) | changes).items() if v is not None}
        np.savez(tmp_path / "x.npz", **arrays)
        capsys.readouterr()
        return npzfiles.from_npz(tmp_path / "x.npz"), capsys.readouterr().err

    return load_changed


TRAIN, TEST = np.arange(30) % 3, np.arange(12) % 3


def labels(change):
    """Training and test labels 0, 1, 2, each changed by a function."""
    return {"train_labels": change(TRAIN), "test_labels": change(TEST)}


def test_a_plain_file_says_nothing(load):
    assert load()[1] == ""


def test_class_names_may_be_bytes(load):
    names = np.array([b"cat", "Hündin".encode(), b"caf\xe9"])
    assert load(classes=names)[0].classes == ["cat", "Hündin", "caf\\xe9"]


def test_class_names_may_be_numbers(load):
    assert load(classes=np.array([7, 8, 9]))[0].classes == ["7", "8", "9"]


def test_labels_that_begin_at_1_are_called_by_their_numbers(load):
    dataset, said = load(**labels(lambda part: part + 1))
    assert dataset.classes == ["1", "2", "3"]
    assert torch.equal(dataset.train_labels, torch.from_numpy(TRAIN))
    assert said.count("\n") == 1 and "labels are 1, 2, 3" in said


def test_labels_that_begin_at_1_are_named_in_order(load):
    dataset, said = load(**labels(lambda part: part + 1), classes=["a", "b", "c"])
    assert dataset.classes == ["a", "b", "c"]
    assert dataset.test_labels[:3].tolist() == [0, 1, 2]
    assert said.count("\n") == 1 and "in this order" in said


def test_labels_with_gaps_are_called_by_their_numbers(load):
    dataset, said = load(**labels(lambda part: part * 5))
    assert dataset.classes == ["0", "5", "10"]
    assert dataset.train_labels[:3].tolist() == [0, 1, 2]
    assert "0, 5, 10" in said


def test_numbers_that_classes_name_out_of_order_are_told_by_name(load):
    dataset, _ = load(**labels(lambda part: part * 5), classes=["10", "0", "5"])
    assert dataset.train_labels[:3].tolist() == [1, 2, 0]


def test_a_named_class_without_images_stays(load):
    dataset, said = load(**labels(lambda part: part + 1), classes=["background", "a", "b", "c"])
    assert dataset.classes == ["background", "a", "b", "c"]
    assert dataset.train_labels.min() == 1
    assert said == ""


def test_labels_with_gaps_and_another_count_of_names_are_refused(load):
    with pytest.raises(UserError, match="2 are named"):
        load(**labels(lambda part: part * 5), classes=["a", "b"])


WORDS = np.array(["dog", "cat", "emu"])


@pytest.mark.parametrize("encode", [np.asarray, np.char.encode, lambda part: part[:, None]])
def test_labels_that_are_texts_are_names(load, encode):
    dataset, said = load(**labels(lambda part: encode(WORDS[part])))
    assert dataset.classes == ["cat", "dog", "emu"]
    assert dataset.train_labels[:3].tolist() == [1, 0, 2]
    assert "names of 3 classes" in said


def test_labels_that_are_texts_are_numbered_as_classes_are(load):
    dataset, said = load(**labels(lambda part: WORDS[part]), classes=WORDS)
    assert dataset.classes == ["dog", "cat", "emu"]
    assert torch.equal(dataset.train_labels, torch.from_numpy(TRAIN))
    assert said == ""


def test_numbers_written_as_texts_are_numbers(load):
    dataset, _ = load(**labels(lambda part: (part * 6).astype(str)))
    assert dataset.classes == ["0", "6", "12"]  # as texts "12" would come before "6"


def test_floats_that_are_whole_and_bools_are_numbers(load):
    assert torch.equal(load(**labels(np.float64))[0].train_labels, torch.from_numpy(TRAIN))
    dataset, _ = load(**labels(lambda part: part == 1))
    assert dataset.train_labels[:3].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"classes": "cat,dog,emu"}, r"classes is one text: it must be the list"),
        ({"classes": np.array(["cat", "dog", "emu"])[:, None]}, r"classes is an array \[3, 1\]"),
        ({"classes": ["cat", "dog", "cat"]}, "2 classes are called 'cat'"),
        ({"classes": ["cat", "dog\nfood", "emu"]}, "give it a name of one line"),
        ({"classes": ["cat", "dog", " "]}, "give it a name of one line"),
        ({"classes": ["cat", "dog", "\x1b[31mred"]}, "give it a name of one line"),
        ({"classes": np.array(["a", "b", "c"], object)}, r"np.array\(names, dtype=str\)"),
        ({"train_labels": WORDS[TRAIN]}, "texts in one part, numbers in the other"),
        (labels(lambda part: WORDS[part]) | {"classes": ["dog", "cat", "eel"]}, "labels name emu"),
        (labels(lambda part: part + 0.5), "class numbers"),
        (labels(lambda part: part - 1), "class numbers"),
        ({"train_labels": np.full(30, np.nan)}, "class numbers"),
        ({"train_images": np.zeros((30, 3, 16, 16), np.uint8)}, "colours last"),
        ({"train_images": None, "x_train": TRAIN}, "and has train_labels, .*x_train"),
    ],
)
def test_what_cannot_be_read_is_refused_by_what_is_wanted(load, changes, text):
    with pytest.raises(UserError, match=text) as error:
        load(**changes)
    assert len(str(error.value)) < 400


def test_validation_arrays_and_others_that_are_not_used_are_said(load):
    noise = np.zeros((2, 16, 16), np.uint8)
    _, said = load(val_images=noise, val_labels=TEST[:2], weights=noise)
    assert said.count("\n") == 1
    assert "Not used of" in said and "val_images, val_labels, weights" in said


def test_validation_images_serve_where_there_are_no_test_images(load):
    moved = tiny_arrays(30, 12)
    dataset, said = load(
        test_images=None,
        test_labels=None,
        val_images=moved["test_images"],
        val_labels=moved["test_labels"],
    )
    assert dataset.test_labels.tolist() == TEST.tolist()
    assert "val_images are the test set" in said


def test_a_file_that_is_not_square_fits_in_three_ways(tmp_path, capsys):

    arrays = tiny_arrays(30, 12)
    for split in ("train", "test"):
        arrays[f"{split}_images"] = arrays[f"{split}_images"][:, :, :10]
    np.savez(tmp_path / "x.npz", **arrays)
    raw = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2)
    cropped, padded, squashed = (
        data.load(tmp_path / "x.npz", fit=fit).test_images for fit in ("crop", "pad", "squash")
    )
    assert torch.equal(cropped, raw[:, :, 3:13])
    assert torch.equal(padded[:, :, :, 3:13], raw)
    assert padded.shape[-2:] == (16, 16) and padded[:, :, :, :3].max() == 0
    assert squashed.shape[-2:] == (16, 16)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" are ")[1].split(" (")[0] for line in said] == [
        "cropped at the centre",
        "padded with black",
        "squashed",
    ]


@pytest.mark.parametrize("content", [b"a,b,c\n1,2,3\n", b"", b"{}", b"PK\x03\x04 cut short"])
def test_what_is_no_npz_is_refused_without_numpys_advice(tmp_path, content):
    path = tmp_path / "table.npz"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match="table.npz cannot be read as .npz: it is of another"
    ) as error:
        npzfiles.from_npz(path)
    assert "pickle" not in str(error.value) and "\n" not in str(error.value)


def test_an_array_alone_is_no_npz(tmp_path):
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="array.npz cannot be read as .npz: it is of another"):
        npzfiles.from_npz(tmp_path / "array.npz")


@pytest.mark.parametrize("keys", [["train_images"], ["train_images", "test_images"], []])
def test_images_of_0_and_1_are_warned_of(tmp_path, capsys, keys):
    arrays = tiny_arrays()
    for key in keys:
        arrays[key] = arrays[key] // 200
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = npzfiles.from_npz(tmp_path / "mine.npz")
    said = capsys.readouterr().err
    assert said.count("\n") == bool(keys)
    if keys:
        assert f"no value in {' and '.join(keys)} of" in said and "by 255" in said
        assert int(dataset.train_images.max()) == 1  # used as they are


# ---------------------------------------------------------------- hostile files


@pytest.fixture
def refused(tmp_path, capsys):
    """Function (bytes of train_images, compression): why the .npz is refused, in one line."""

    def why(content, compression=zipfile.ZIP_STORED):
        arrays = members_of(tiny_arrays(30, 12))
        members = [(name, content if "train_im" in name else kept) for name, kept in arrays]
        write_npz(tmp_path / "x.npz", members, compression)
        with pytest.raises(UserError, match="x.npz cannot be read as .npz: ") as error:
            npzfiles.from_npz(tmp_path / "x.npz")
        assert "\n" not in str(error.value) and capsys.readouterr().err == ""
        return str(error.value)

    return why


@pytest.mark.parametrize(
    "name",
    [
        *("an open bracket", "three quotes", "brackets in brackets", "a NUL", "many signs"),
        *("a number and a word", "a number of Python 2", "10^30 images", "10^12 images"),
        *("2^62 images", "a bool for a side", "an array for a type", "a text of no letters"),
    ],
)
def test_a_header_that_lies_or_does_not_parse_is_refused(refused, name):
    refused(with_header(HEADERS[name], b"\x07" * 100))


@pytest.mark.parametrize("name", ["version 9", "longer", "more", "less", "pickle"])
def test_a_member_that_is_no_whole_array_is_refused(refused, name):
    array = npy(tiny_arrays(30, 12)["train_images"])
    refused(
        {
            "version 9": array[:6] + b"\x09" + array[7:],
            "longer": with_header(header((30,)), b"", 2, 2**31),
            "more": array + b"more",
            "less": array[:-1],
            "pickle": b"\x80\x04.",
        }[name]
    )


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_member_that_is_damaged_is_refused(tmp_path, compression):
    path = tmp_path / "x.npz"
    write_npz(path, members_of(tiny_arrays(30, 12)), compression)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("train_images.npy")
    raw = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    raw[start + 20 : start + member.compress_size] = bytes(member.compress_size - 20)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="cannot be read as .npz: train_images.npy: "):
        npzfiles.from_npz(path)


def test_more_than_the_memory_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", **tiny_arrays(30, 12))
    monkeypatch.setattr(npzmembers, "memory", lambda: 30 * 16 * 16 * 3)
    npzfiles.from_npz(tmp_path / "x.npz")
    monkeypatch.setattr(npzmembers, "memory", lambda: 30 * 16 * 16 * 3 - 1)
    with pytest.raises(UserError, match="23,040 bytes, more than this machine's memory"):
        npzfiles.from_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", [".npy", ""])
def test_an_array_that_is_there_twice_is_refused(tmp_path, suffix):
    members = members_of(tiny_arrays(30, 12))
    other = f"train_images{suffix}", npy(np.zeros((30, 16, 16), np.uint8))
    write_npz(tmp_path / "x.npz", [*members, other])
    with pytest.raises(UserError, match="two arrays called train_images"):
        npzfiles.from_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/dev/null"),
    ],
)
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "x.npz")
    with limited(5), pytest.raises(UserError, match="it is no file"):
        data.load(str(tmp_path / "x.npz"))
    assert npzfiles.fingerprint_of(tmp_path / "x.npz") is None


def test_columns_first_and_the_other_byte_order_are_read(load):
    arrays = tiny_arrays(30, 12)
    images = np.asfortranarray(arrays["train_images"])
    dataset, said = load(train_images=images, **labels(lambda part: part.astype(">i8")))
    assert np.array_equal(dataset.train_images.permute(0, 2, 3, 1).numpy(), images)
    assert torch.equal(dataset.train_labels, torch.from_numpy(TRAIN)) and said == ""


def test_a_long_name_is_abridged(load):
    with pytest.raises(UserError, match="give it a name of one line") as error:
        load(classes=["a \n" * 5000, "b", "c"])
    assert len(str(error.value)) < 400
