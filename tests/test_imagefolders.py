"""Folders of pictures as people have them: all that can be read is, and the rest is said."""

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from conftest import ROOT
from driving import limited
from PIL import Image

import data
import imagefolders
from cli import UserError


def save_grey(path, value, size=(30, 30)):
    """A picture of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def save_heic(path):
    """A file that begins as a phone's HEIC does."""
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))


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
def plain(tmp_path):
    """A folder without a split: ten dark and five light pictures."""
    folder = tmp_path / "plain"
    for name, n, value in (("dark", 10, 20), ("light", 5, 220)):
        for k in range(n):
            save_grey(folder / name / f"{k}.png", value + k)
    return folder


@pytest.fixture
def kept(tmp_path):
    """Where decoded folders are kept."""
    return tmp_path / "kept"


@pytest.fixture
def load(kept, capsys):
    """Function (folder, fit): (Dataset, what was said)."""

    def load_folder(folder, fit="crop"):
        capsys.readouterr()
        return imagefolders.from_folder(folder, kept, 16, fit), capsys.readouterr().err

    return load_folder


# ---------------------------------------------------------------- read and kept


def test_a_folder_has_its_classes_by_name_and_its_images_in_order(pets, load):
    dataset, said = load(pets)
    assert dataset.classes == ["dark", "light"]
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train_images.shape == (6, 3, 16, 16)
    assert dataset.test_images[3].unique().tolist() == [221]
    assert said == ""


def test_a_folder_is_decoded_once(pets, load, monkeypatch):
    (pets / "train" / "dark" / "bad.png").write_text("no picture")
    dataset, said = load(pets)
    monkeypatch.setattr(imagefolders, "decode", None)  # a second start decodes nothing
    again, said_again = load(pets)
    assert torch.equal(again.train_images, dataset.train_images)
    assert said == said_again and "bad.png" in said


def test_a_folder_is_decoded_again_when_a_picture_changes(pets, load):
    load(pets)
    save_grey(pets / "test" / "light" / "1.png", 99)
    assert load(pets)[0].test_images[3].unique().tolist() == [99]


def test_each_fit_is_kept_by_itself(pets, load, kept):
    save_grey(pets / "train" / "dark" / "wide.png", 50, (60, 30))
    padded, _ = load(pets, "pad")
    cropped, _ = load(pets, "crop")
    assert not torch.equal(padded.train_images, cropped.train_images)
    assert torch.equal(load(pets, "pad")[0].train_images, padded.train_images)
    assert len(list(kept.iterdir())) == 2


def test_a_users_own_file_is_not_overwritten_by_a_decoded_folder(pets, kept, load):
    kept.mkdir()
    np.savez(kept / "pets_16_crop.npz", mine=1)
    with pytest.raises(UserError, match="file of yours"):
        load(pets)
    with np.load(kept / "pets_16_crop.npz") as arrays:
        assert arrays.files == ["mine"]


# ---------------------------------------------------------------- what is read


def test_every_format_that_pillow_reads_is_read(pets, load):
    for k, suffix in enumerate(["webp", "bmp", "tif", "tiff", "gif", "JPG", "jp2", "ppm", "tga"]):
        save_grey(pets / "train" / "dark" / f"{k}.{suffix}", 90)
    save_grey(pets / "train" / "dark" / "x.png", 90)
    (pets / "train" / "dark" / "x.png").rename(pets / "train" / "dark" / "without_suffix")
    dataset, said = load(pets)
    assert dataset.train_labels.bincount().tolist() == [13, 3]
    assert said == ""


def test_a_gif_is_its_first_frame(pets, load):
    frames = [Image.new("RGB", (30, 30), (value,) * 3) for value in (10, 250, 250)]
    path = pets / "test" / "dark" / "0.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load(pets)[0].test_images[0].unique().tolist() == [10]


def test_a_suffix_that_says_another_format_does_not_matter(pets, load):
    save_grey(pets / "train" / "dark" / "a.png", 77)
    (pets / "train" / "dark" / "a.png").rename(pets / "train" / "dark" / "a.jpeg")
    assert load(pets)[0].train_images[3].unique().tolist() == [77]


def test_hidden_files_and_folders_are_skipped(pets, load):
    for place in (pets, pets / "train", pets / "train" / "dark"):
        (place / "._1.jpg").write_bytes(b"a Mac's")
        (place / ".DS_Store").write_bytes(b"a Mac's")
        save_grey(place / ".ipynb_checkpoints" / "0.png", 0)
        save_grey(place / "__MACOSX" / "0.png", 0)
    dataset, said = load(pets)
    assert dataset.classes == ["dark", "light"]
    assert len(dataset.train_labels) == 6
    assert said == ""


# ---------------------------------------------------------------- what is left out


def test_what_is_left_out_is_counted_by_class_and_reason(pets, load):
    dark = pets / "train" / "dark"
    (dark / "Thumbs.db").write_bytes(b"")
    (dark / "notes.txt").write_text("x")
    (dark / "more.txt").write_text("x")
    save_grey(dark / "older" / "0.png", 0)
    save_grey(pets / "train" / "loose.png", 0)
    save_grey(pets / "other" / "0.png", 0)
    dataset, said = load(pets)
    assert len(dataset.train_labels) == 6
    assert said.count("\n") == 1
    for part in ("train/dark: ", "1 .db file", "2 .txt files", "1 sub-folder"):
        assert part in said
    assert "train: 1 loose file" in said and "1 other folder" in said


def test_left_out_of_many_classes_is_one_short_line(pets, load):
    for k in range(40):
        save_grey(pets / "train" / f"c{k}" / "0.png", 0)
        (pets / "train" / f"c{k}" / "notes.txt").write_text("x")
    said = load(pets)[1]
    assert said.count("\n") == 1 and len(said) < 400
    assert "and in 34 more folders" in said


def test_all_damaged_pictures_are_named_at_once_and_left_out(pets, load):
    (pets / "train" / "dark" / "1.png").write_text("no picture")
    whole = (pets / "test" / "light" / "0.jpg").read_bytes()
    (pets / "test" / "light" / "0.jpg").write_bytes(whole[:200])
    (pets / "test" / "light" / "gone.png").symlink_to("nowhere.png")
    dataset, said = load(pets)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (5, 3)
    assert said.count("\n") == 1
    names = "train/dark/1.png, test/light/0.jpg, test/light/gone.png"
    assert f"3 pictures cannot be decoded and are left out: {names}." in said


def test_many_damaged_pictures_are_one_short_line(pets, load):
    for k in range(300):
        (pets / "train" / "dark" / f"bad{k:03}.png").write_text("no picture")
    said = load(pets)[1]
    assert said.count("\n") == 1 and len(said) < 400
    assert "300 pictures cannot be decoded" in said and "and 294 more" in said


def test_heic_is_left_out_by_name_with_what_to_do(pets, load):
    save_heic(pets / "train" / "dark" / "IMG_1.HEIC")
    save_heic(pets / "train" / "dark" / "IMG_2.jpg")  # as phones' exports call them
    dataset, said = load(pets)
    assert len(dataset.train_labels) == 6
    assert said.count("\n") == 1
    assert "train/dark/IMG_1.HEIC, train/dark/IMG_2.jpg; save them as JPEG" in said


def test_a_folder_whose_training_pictures_are_all_damaged_is_refused(pets, load, kept):
    for path in (pets / "train").glob("*/*"):
        path.write_text("no picture")
    with pytest.raises(UserError, match="6 pictures cannot be decoded .*train/dark/0.jpg"):
        load(pets)
    assert not kept.exists()


def test_an_empty_class_folder_is_said(pets, load):
    (pets / "train" / "bird").mkdir()
    (pets / "test" / "bird").mkdir()
    dataset, said = load(pets)
    assert dataset.classes == ["dark", "light"]
    assert "No pictures in train/bird: left out." in said


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_val_serves_where_there_is_no_test(pets, load, name):
    (pets / "test").rename(pets / name)
    dataset, said = load(pets)
    assert len(dataset.test_labels) == 4
    assert f"has no test/: {name}/ is the test set" in said


def test_val_beside_test_is_said_to_be_unused(pets, load):
    save_grey(pets / "val" / "dark" / "0.png", 0)
    dataset, said = load(pets)
    assert len(dataset.train_labels) == 6
    assert "val/ of" in said and "not used" in said and said.count("\n") == 1


def test_folders_called_training_and_testing_are_the_split(pets, load):
    (pets / "train").rename(pets / "Training")
    (pets / "test").rename(pets / "Testing")
    dataset, said = load(pets)
    assert (len(dataset.train_labels), len(dataset.test_labels), said) == (6, 4, "")


def test_plain_class_folders_are_split_by_a_seed(plain, load, kept):
    dataset, said = load(plain)
    assert dataset.train_labels.bincount().tolist() == [8, 4]
    assert dataset.test_labels.bincount().tolist() == [2, 1]
    values = [images[:, 0, 0, 0].tolist() for images in (dataset.train_images, dataset.test_images)]
    assert sorted(values[0] + values[1]) == [*range(20, 30), *range(220, 225)]
    assert said.count("\n") == 1 and "a fifth of each class" in said and "(3 of 15)" in said
    next(kept.iterdir()).unlink()
    assert torch.equal(load(plain)[0].test_images, dataset.test_images)


def test_a_plain_class_of_one_picture_is_trained_on(plain, load):
    save_grey(plain / "single" / "0.png", 100)
    dataset, _ = load(plain)
    assert dataset.classes == ["dark", "light", "single"]
    assert (dataset.train_labels == 2).sum() == 1
    assert (dataset.test_labels == 2).sum() == 0


def remove(path):
    return lambda folder: (folder / path).rename(folder.parent / "gone")


def into(name):
    """Moves all that is in a folder into a folder in it."""

    def move(folder):
        inner = [*folder.iterdir()]
        (folder / name).mkdir()
        for path in inner:
            path.rename(folder / name / path.name)

    return move


def only_loose(folder):
    for path in folder.iterdir():
        path.rename(folder.parent / f"former_{path.name}")
    save_grey(folder / "0.png", 1)


@pytest.mark.parametrize(
    "change, text",
    [
        (remove("test"), "no images in test/CLASS/ .*or give --dataset .*train, of which a fifth"),
        (remove("train"), "has test/ and no train/"),
        (into("inner"), "no images .*: is it .*pets/inner\\?"),
        (only_loose, "put the pictures of each class into a folder"),
        (remove("train/light"), "classes that train/ has not: light"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_with_what_to_do(pets, load, kept, change, text):
    change(pets)
    with pytest.raises(UserError, match=text) as error:
        load(pets)
    assert "\n" not in str(error.value)
    assert not kept.exists()


def test_a_class_that_only_the_test_images_have_is_refused(pets, load):
    save_grey(pets / "test" / "zebra" / "0.png", 0)
    with pytest.raises(UserError, match="classes that train/ has not: zebra"):
        load(pets)


def test_a_folder_of_one_class_is_refused(plain, load):
    (plain / "light").rename(plain.parent / "light")
    with pytest.raises(UserError, match="only one class has pictures, dark"):
        load(plain)


# ---------------------------------------------------------------- names


def test_japanese_names_are_classes(pets, load):
    for split in ("train", "test"):
        (pets / split / "dark").rename(pets / split / "猫 ねこ")
    (pets / "train" / "猫 ねこ" / "写真.png").write_text("no picture")
    dataset, said = load(pets)
    assert dataset.classes == ["light", "猫 ねこ"]
    assert "train/猫 ねこ/写真.png" in said


def test_composed_letters_and_accents_of_their_own_are_one_class(pets, load):
    composed, apart = (unicodedata.normalize(form, "が é") for form in ("NFC", "NFD"))
    (pets / "train" / "dark").rename(pets / "train" / composed)
    (pets / "test" / "dark").rename(pets / "test" / apart)
    assert load(pets)[0].classes == ["light", composed]


@pytest.fixture
def not_utf8(pets):
    """The folder with names of bytes that are no UTF-8: of a class and of a damaged picture."""
    name = b"caf\xe9"
    for split in ("train", "test"):
        try:
            os.rename(pets / split / "dark", os.fsencode(pets / split) + b"/" + name)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    bad = os.fsencode(pets / "train") + b"/" + name + b"/\xff.png"
    with open(bad, "wb") as file:
        file.write(b"no picture")
    return pets


def test_names_that_are_no_utf8_are_shown_by_their_bytes(not_utf8, load):
    dataset, said = load(not_utf8)
    assert dataset.classes == ["caf\\xe9", "light"]
    assert "train/caf\\xe9/\\xff.png" in said
    said.encode("ascii")


def test_a_line_break_in_a_name_stays_in_its_line(pets, load):
    for split in ("train", "test"):
        (pets / split / "dark").rename(pets / split / "dark\nnight")
    (pets / "train" / "dark\nnight" / "a\r\nb.png").write_text("no picture")
    (pets / "train" / "dark\nnight" / "notes.txt").write_text("x")
    dataset, said = load(pets)
    assert dataset.classes == ["dark\\nnight", "light"]
    assert said.count("\n") == 2
    assert "dark\\nnight/a\\r\\nb.png" in said and "dark\\nnight: 1 .txt file" in said


def test_a_console_of_ascii_is_no_obstacle(not_utf8, tmp_path):
    for split in ("train", "test"):
        (not_utf8 / split / "light").rename(not_utf8 / split / "猫")
    (not_utf8 / "test" / "猫" / "犬.png").write_text("no picture")
    (not_utf8).rename(tmp_path / "動物")
    code = (
        "import sys, cli, data\n"
        "cli.command(lambda argv: print(*data.load(*argv).classes))(sys.argv[1:])"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "動物"), str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "caf\\xe9 \\u732b"
    assert "2 pictures cannot be decoded" in done.stderr


def test_a_folder_without_a_kept_size_is_of_32_pixels(pets, kept):
    dataset = data.load(str(pets), kept)
    assert dataset.train_images.shape == (6, 3, 32, 32)
    assert (kept / "pets_32_crop.npz").exists()


@pytest.mark.parametrize("place", ["photos", "2019/phone"])
def test_a_folder_too_deep_with_a_picture_at_the_top_is_refused_with_where(plain, load, place):
    deep = plain.parent / "deep"
    (deep / place).parent.mkdir(parents=True)
    plain.rename(deep / place)
    save_grey(deep / place.split("/")[0] / "cover.png", 5)
    words = f"only one class has .*deep/{place} has sub-folders with pictures, dark, light"
    with pytest.raises(UserError, match=words):
        load(deep)


def test_of_a_deep_split_it_is_said_where_the_classes_are(pets, load):
    for split in ("train", "test"):
        into("photos")(pets / split)
        save_grey(pets / split / "photos" / "cover.png", 5)
    words = "only one class .*pets/test/photos has sub-folders with pictures, dark, light"
    with pytest.raises(UserError, match=words):
        load(pets)


def test_the_fifth_is_counted_of_the_pictures_that_are_used(plain, load):
    save_heic(plain / "dark" / "new.heic")
    (plain / "light" / "9.png").write_text("no picture")
    dataset, said = load(plain)
    used = len(dataset.train_labels) + len(dataset.test_labels)
    assert used == 15 and f"({len(dataset.test_labels)} of 15)" in said


def test_a_picture_above_pillows_limit_is_called_too_large(pets, load, monkeypatch):
    save_grey(pets / "train" / "dark" / "panorama.png", 9, size=(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # it warns of these, and refuses twice
    dataset, said = load(pets)
    assert len(dataset.train_labels) == 6
    assert "1 picture is too large and left out: train/dark/panorama.png" in said
    assert "up to 2,000 pixels" in said and "decoded" not in said


def test_further_frames_and_lost_brightness_are_said(pets, load):
    frames = [Image.new("RGB", (30, 30), (value,) * 3) for value in (20, 120)]
    for k, suffix in enumerate(("gif", "tif")):
        path = pets / "train" / "dark" / f"frames{k}.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
    for k in range(3):
        deep = np.full((30, 30), 1000 * k, np.uint16)
        deep[0] = 1
        Image.fromarray(deep).save(pets / "train" / "light" / f"scan{k}.png")
    said = load(pets)[1]
    assert "2 pictures are of several frames or pages, of which the first is taken" in said
    assert "3 pictures are of more than 8 bits" in said
    assert "each by its own range: how bright one is beside another is lost" in said
    assert said.count("\n") == 1 and said == load(pets)[1]


def test_pictures_of_0_and_1_are_warned_of_once(pets, load):
    for k in range(3):
        mask = np.eye(30, dtype=np.uint8)
        Image.fromarray(mask).save(pets / "train" / "dark" / f"mask{k}.png")
    said = load(pets)[1]
    assert "3 pictures are without a value above 1" in said and "multiply them by 255" in said
    assert said.count("\n") == 1


def test_a_folder_of_0_and_1_alone_is_warned_of_once(pets, load):
    for path in [*pets.glob("*/*/*.*")]:
        path.unlink()
        Image.fromarray(np.eye(30, dtype=np.uint8)).save(path.with_suffix(".png"))
    assert load(pets)[1].count("multiply them by 255") == 1


# ---------------------------------------------------------------- hostile folders


def test_pipes_devices_and_loops_are_left_out_and_not_waited_for(pets, load):
    dark = pets / "train" / "dark"
    os.mkfifo(dark / "a.png")
    os.mkfifo(dark / "b")
    (dark / "c.png").symlink_to("/dev/zero")
    (dark / "d.png").symlink_to("d.png")
    (dark / "e").symlink_to("..")
    with limited(10):
        dataset, said = load(pets)
    assert len(dataset.train_labels) == 6
    assert "train/dark: 3 special files, 1 sub-folder" in said
    assert "1 picture cannot be decoded and is left out: train/dark/d.png" in said


@pytest.mark.parametrize("notes", [None, np.arange(2), np.array("one"), np.array([None])])
def test_a_kept_file_whose_notes_are_others_is_still_read(pets, load, kept, notes):
    load(pets)
    path = next(kept.iterdir())
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key != "notes"}
    np.savez(path, **arrays, **({} if notes is None else {"notes": notes}))
    assert len(load(pets)[0].train_labels) == 6


def test_a_pipe_in_the_place_of_a_kept_file_is_the_users(pets, load, kept):
    kept.mkdir()
    os.mkfifo(kept / "pets_16_crop.npz")
    with limited(5), pytest.raises(UserError, match="a file of yours"):
        load(pets)
