"""ChestX-ray14: what is read is what lies there, split by patient, decoded once."""

import json
import os
import resource
import threading
import time

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, tiny_arrays
from PIL import Image

import chestxray
import chestxray_decode
import data
from cli import UserError

FINDINGS = ["No Finding", "Edema", "Mass|Nodule", "Hernia", "No Finding", "Effusion|Edema|Mass"]
HEADERS = {
    "2017": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
    "v2020": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,"
    "View Position,OriginalImageWidth,OriginalImageHeight",
    "one word": "\ufeffImageIndex,finding_labels,Follow-up #,patient id",
}
ARCHIVES = ("images_001/images", "images_002/images", "images_012/images")


class Radiographs:
    """A folder laid out as the NIH's, in a data folder: 24 patients, 3 pictures each.

    Each picture has one grey, its number. The patients 0, 4, 8 and so on are the published test
    part: 18 of the 72 pictures. names, findings, patients: a list entry for each picture.
    """

    def __init__(
        self,
        data_dir,
        patients=24,
        header="2017",
        lists=True,
        places=("images",),
        findings=FINDINGS,
    ):
        self.data_dir = data_dir
        self.folder = data_dir / "chestxray14"
        self.names, self.findings, self.patients = [], [], []
        for patient in range(patients):
            for k in range(3):
                self.names.append(f"{patient:08d}_{k:03d}.png")
                self.findings.append(findings[(patient + k) % len(findings)])
                self.patients.append(patient)
        self.draw_pictures(places)
        self.write_table(header)
        if lists:
            self.write_lists()

    def draw_pictures(self, places):
        for place in places:
            (self.folder / place).mkdir(parents=True)
        for number, name in enumerate(self.names):
            place = places[number % len(places)]
            Image.new("L", (48, 48), number).save(self.folder / place / name)

    def write_table(self, header):
        lines = [HEADERS[header]]
        for name, findings, patient in zip(self.names, self.findings, self.patients):
            lines.append(f"{name},{findings},0,{patient},60,M,PA,1024,1024")
        table = "Data_Entry_2017_v2020.csv" if header == "v2020" else "Data_Entry_2017.csv"
        (self.folder / table).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def write_lists(self):
        numbers = {"train": self.in_train(), "test": self.in_test()}
        for part, file_name in chestxray.LISTS.items():
            names = [self.names[number] for number in numbers[part]]
            (self.folder / file_name).write_text("\n".join(names) + "\n")

    def in_train(self):
        """The numbers of the pictures of the published training part."""
        return [number for number, patient in enumerate(self.patients) if patient % 4]

    def in_test(self):
        return [number for number, patient in enumerate(self.patients) if patient % 4 == 0]

    def picture(self, number):
        return self.folder / "images" / self.names[number]

    def load(self, name="chestxray14-multi", size=16):
        return data.load(name, self.data_dir, size)


@pytest.fixture
def radiographs(tmp_path):
    return Radiographs(tmp_path)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chestxray_decode, "BLOCK", 10)


def greys(images):
    """The number of each picture of images [N, 1, H, W]: a picture has one grey, its number."""
    return images[:, 0, 0, 0].tolist()


# ---------------------------------------------------------------- what is read


def test_the_classes_are_14_diseases_in_alphabetical_order():
    assert len(chestxray.DISEASES) == 14
    assert chestxray.DISEASES == sorted(chestxray.DISEASES)
    assert chestxray.DISEASES[3] == "Edema"


@pytest.fixture(params=HEADERS)
def header(request):
    return request.param


@pytest.fixture(params=[("images",), ARCHIVES], ids=["one folder", "three archives"])
def published(request, header, tmp_path):
    """Radiographs with each header of the table, in one folder or as the archives unpack."""
    return Radiographs(tmp_path, header=header, places=request.param)


def test_multi_label_pictures_and_patients_are_those_of_the_table(published):
    dataset = published.load()
    assert dataset.train_images.shape == (54, 1, 16, 16)
    assert dataset.test_images.shape == (18, 1, 16, 16)
    assert dataset.train_images[:, 0, 5, 5].tolist() == published.in_train()
    patients = [published.patients[number] for number in published.in_train()]
    assert dataset.train_groups.tolist() == patients


def test_multi_labels_are_those_of_the_table(published):
    dataset = published.load()
    assert dataset.multi_label
    assert dataset.classes == chestxray.DISEASES
    for labels, number in zip(dataset.train_labels, published.in_train()):
        shown = {name for name, label in zip(dataset.classes, labels) if label}
        assert shown == set(published.findings[number].split("|")) - {"No Finding"}


def test_single_label_images_are_those_of_one_finding_or_none(published):
    dataset = published.load("chestxray14")
    numbers = [n for n in published.in_train() if "|" not in published.findings[n]]
    assert greys(dataset.train_images) == numbers
    assert dataset.train_groups.tolist() == [published.patients[n] for n in numbers]
    findings = [dataset.classes[label] for label in dataset.train_labels]
    assert findings == [published.findings[n] for n in numbers]


def test_no_finding_is_the_last_of_15_classes(radiographs):
    dataset = radiographs.load("chestxray14")
    assert not dataset.multi_label
    assert len(dataset.classes) == 15
    assert dataset.classes[3] == "Edema"
    assert dataset.classes[14] == "No Finding"


@pytest.mark.parametrize("name", ["chestxray14", "chestxray14-multi"])
def test_a_radiograph_is_shifted_by_a_32nd_and_never_mirrored(radiographs, name):
    dataset = radiographs.load(name, 64)
    assert dataset.crop == 2
    assert not dataset.flip


def test_how_many_of_the_published_pictures_are_here_is_said(radiographs, capsys):
    radiographs.load()
    assert "72 of 112,120 pictures are here." in capsys.readouterr().err


def test_every_picture_may_show_one_disease(tmp_path):
    radiographs = Radiographs(tmp_path, findings=["Edema", "Mass"])
    assert radiographs.load().train_labels.sum(1).tolist() == [1] * 54
    assert set(radiographs.load("chestxray14").train_labels.tolist()) == {3, 9}


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real data sets are not on this machine")
def test_the_real_ones(tmp_path):
    (tmp_path / "chestxray14").symlink_to(REAL_DATA / "chestxray14")
    if not list((REAL_DATA / "chestxray14").glob("images/*.png")):
        pytest.skip("the radiographs are not unpacked")
    dataset = data.load("chestxray14", tmp_path, 32)
    assert len(dataset.train_labels) == 1167
    assert len(dataset.test_labels) == 233
    assert (dataset.train_labels == 3).sum() == 0
    assert (dataset.train_labels == 14).sum() == 900


# ---------------------------------------------------------------- split by patient


@pytest.fixture
def without_lists(tmp_path):
    return Radiographs(tmp_path, lists=False)


def test_without_the_lists_a_fifth_of_the_patients_are_the_test_set(without_lists, capsys):
    dataset = without_lists.load()
    assert "a fifth of the patients are the test set" in capsys.readouterr().err
    in_test = {without_lists.patients[number] for number in greys(dataset.test_images)}
    assert len(in_test) == 5
    assert len(dataset.test_labels) == 15
    assert not in_test & set(dataset.train_groups.tolist())


def test_no_patient_is_both_trained_on_and_held_out(without_lists):
    groups = without_lists.load().train_groups
    trained_on, held_out = data.validation_split(57, 0, groups)
    assert sorted([*trained_on.tolist(), *held_out.tolist()]) == list(range(57))
    assert 0 < len(held_out) <= 5
    assert not set(groups[trained_on].tolist()) & set(groups[held_out].tolist())


def test_another_seed_holds_out_other_patients(without_lists):
    groups = without_lists.load().train_groups
    first, second = (data.validation_split(57, seed, groups)[1] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_one_patient_cannot_be_divided(tmp_path):
    radiographs = Radiographs(tmp_path, patients=1, lists=False)
    with pytest.raises(UserError, match="one patient"):
        radiographs.load("chestxray14")


# ---------------------------------------------------------------- odd and damaged pictures


def test_colour_and_alpha_are_brought_to_grey(radiographs):
    translucent = Image.new("RGBA", (1024, 1024), (40, 40, 40, 9))
    translucent.save(radiographs.picture(3))
    assert greys(radiographs.load().train_images)[:2] == [40, 4]


def test_16_bit_pictures_are_brought_to_8_bits(radiographs):
    pixels = np.full((30, 30), 90 * 257, np.uint16)
    Image.fromarray(pixels).save(radiographs.picture(3))
    assert greys(radiographs.load().train_images)[:2] == [90, 4]


@pytest.fixture
def damaged(radiographs):
    """Radiographs, of which one of the training part is cut short, and one of the test part."""
    whole = radiographs.picture(5).read_bytes()
    radiographs.picture(5).write_bytes(whole[: len(whole) // 2])
    radiographs.picture(0).write_bytes(b"no picture")
    return radiographs


def test_damaged_pictures_are_left_out(damaged):
    dataset = damaged.load()
    assert greys(dataset.train_images)[:3] == [3, 4, 6]
    assert greys(dataset.test_images)[:2] == [1, 2]
    assert len(dataset.train_labels) == len(dataset.train_groups) == 53
    assert len(dataset.test_labels) == 17
    assert dataset.test_labels[0].nonzero()[:, 0].tolist() == [3]  # picture 1 shows Edema


def test_damaged_pictures_are_named(damaged, capsys):
    damaged.load()
    printed = capsys.readouterr().err
    names = f"{damaged.names[5]}, {damaged.names[0]}"
    assert f"2 damaged pictures are left out: {names}" in printed


@pytest.mark.parametrize("name", ["chestxray14", "chestxray14-multi"])
def test_damaged_pictures_are_counted_at_every_start(damaged, capsys, name):
    damaged.load()
    capsys.readouterr()
    damaged.load(name)
    assert "72 of 112,120 pictures are here, 2 of them damaged" in capsys.readouterr().err


def test_a_picture_that_no_table_names_is_left_out_and_counted(radiographs, capsys):
    whole = radiographs.picture(5).read_bytes()
    (radiographs.folder / "images" / "stranger.png").write_bytes(whole)
    assert len(radiographs.load().train_labels) == 54
    printed = capsys.readouterr().err
    assert "1 pictures in" in printed
    assert "no table or list" in printed


# ---------------------------------------------------------------- decoded once, interrupted


@pytest.fixture
def interrupted(radiographs, monkeypatch):
    """Radiographs whose decoding was interrupted at the 35th picture, after three blocks of 10."""
    decode_grey = chestxray_decode.decode_grey
    seen = []

    def stop_at_35(path, size):
        seen.append(path)
        if len(seen) == 35:
            raise KeyboardInterrupt
        return decode_grey(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(chestxray_decode, "decode_grey", stop_at_35)
        with pytest.raises(KeyboardInterrupt):
            radiographs.load()
    return radiographs


@pytest.fixture
def decoded(monkeypatch):
    """A list that receives the path of every picture that is decoded."""
    decode_grey = chestxray_decode.decode_grey
    paths = []

    def noted(path, size):
        paths.append(path)
        return decode_grey(path, size)

    monkeypatch.setattr(chestxray_decode, "decode_grey", noted)
    return paths


def test_an_interrupted_decoding_leaves_notes_and_no_data_set(interrupted):
    assert not (interrupted.data_dir / "chestxray14_16.npz").exists()
    note = json.loads((interrupted.data_dir / "chestxray14_16.part.json").read_text())
    assert note["done"] == 30


def test_an_interrupted_decoding_is_continued(interrupted, decoded):
    interrupted.load()
    assert len(decoded) == 72 - 30
    left = sorted(path.name for path in interrupted.data_dir.iterdir())
    assert left == ["chestxray14", "chestxray14_16.npz"]


def test_a_continued_decoding_gives_the_same_data_set(interrupted, tmp_path):
    continued = interrupted.load()
    assert greys(continued.train_images) == interrupted.in_train()
    assert greys(continued.test_images) == interrupted.in_test()
    (tmp_path / "chestxray14_16.npz").unlink()
    assert interrupted.load().digest == continued.digest


@pytest.mark.parametrize("removed", [0, 1])
def test_a_decoding_killed_when_it_was_kept_leaves_nothing(removed, radiographs, decoded):
    """Before its partial files were removed, or between the two."""
    radiographs.load()
    for path in chestxray_decode.partial_files(radiographs.data_dir / "chestxray14_16")[removed:]:
        path.write_text("{}")
    decoded.clear()
    radiographs.load()
    left = sorted(path.name for path in radiographs.data_dir.iterdir())
    assert left == ["chestxray14", "chestxray14_16.npz"] and decoded == []


def test_a_disk_that_is_full_is_named_and_the_decoding_goes_on_later(radiographs, decoded):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (35 * 256, limits[1]))  # as many pictures
    try:
        with pytest.raises(UserError, match=r"cannot write .*chestxray14_16\.part: File too large"):
            radiographs.load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    decoded.clear()
    radiographs.load()
    assert len(decoded) == 72 - 30


def test_an_interrupted_decoding_of_other_pictures_is_not_continued(interrupted, decoded):
    Image.new("L", (48, 48), 200).save(interrupted.picture(1))
    interrupted.load()
    assert len(decoded) == 72


def test_a_second_start_decodes_nothing(radiographs, decoded):
    first = radiographs.load("chestxray14")
    decoded.clear()
    assert torch.equal(radiographs.load("chestxray14").train_images, first.train_images)
    assert decoded == []


@pytest.mark.parametrize("kept_file", [None, "test_list.txt"])
def test_what_is_kept_does_without_the_pictures(radiographs, kept_file):
    first = radiographs.load("chestxray14")
    elsewhere = radiographs.folder.rename(radiographs.data_dir / "elsewhere")
    if kept_file is not None:  # the pictures are gone, a list is not
        radiographs.folder.mkdir()
        os.rename(elsewhere / kept_file, radiographs.folder / kept_file)
    assert torch.equal(radiographs.load("chestxray14").train_images, first.train_images)


def test_another_picture_of_a_name_is_decoded_anew(radiographs):
    radiographs.load()
    Image.new("L", (20, 20), 200).save(radiographs.picture(-1))
    assert (radiographs.load().train_images[-1] == 200).all()


def test_what_is_kept_is_not_replaced_by_fewer_pictures(radiographs):
    radiographs.load()
    radiographs.picture(-1).unlink()
    with pytest.raises(UserError, match="holds 72 pictures, and only 71"):
        radiographs.load()


def test_two_that_decode_at_once_take_turns(radiographs, monkeypatch):
    decode_grey = chestxray_decode.decode_grey
    paths, results = [], []

    def slowly(path, size):
        paths.append(path)
        time.sleep(0.005)  # so that the second comes while the first is at work
        return decode_grey(path, size)

    monkeypatch.setattr(chestxray_decode, "decode_grey", slowly)
    both = [threading.Thread(target=lambda: results.append(radiographs.load())) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(paths) == 72
    assert torch.equal(results[0].train_images, results[1].train_images)
    assert len(results[0].train_images.unique()) == 54


# ---------------------------------------------------------------- a user's own files


def test_a_users_own_file_is_not_taken_for_the_radiographs(tmp_path):
    np.savez(tmp_path / "chestxray14_16.npz", **tiny_arrays())
    with pytest.raises(UserError, match="rename it"):
        data.load("chestxray14", tmp_path, 16)


def test_a_file_with_the_diseases_names_is_not_taken_for_the_radiographs(tmp_path):
    identity = np.eye(5, 14, dtype=np.uint8)
    arrays = {"classes": chestxray.DISEASES}
    for part, patients in (("train", np.arange(5)), ("test", np.arange(5, 10))):
        arrays[f"{part}_images"] = np.zeros((5, 32, 32), np.uint8)
        arrays[f"{part}_labels"] = identity | identity[::-1]
        arrays[f"{part}_patients"] = patients
    np.savez(tmp_path / "chestxray14_32.npz", **arrays)
    with pytest.raises(UserError, match="rename it"):
        data.load("chestxray14-multi", tmp_path, 32)


@pytest.mark.parametrize("extra", [{}, {"fingerprint": "of a folder's pictures"}])
def test_a_users_own_file_is_not_overwritten(radiographs, extra):
    kept = radiographs.data_dir / "chestxray14_16.npz"
    np.savez(kept, **tiny_arrays(), **extra)
    with pytest.raises(UserError, match="file of yours"):
        radiographs.load("chestxray14")
    with np.load(kept) as arrays:
        assert len(arrays["train_images"]) == 240


# ---------------------------------------------------------------- what is not there


def refusal(data_dir):
    """The text of the UserError that loading ends in: one line."""
    with pytest.raises(UserError) as error:
        data.load("chestxray14", data_dir, 16)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def table(radiographs):
    return radiographs.folder / "Data_Entry_2017.csv"


@pytest.fixture
def list_of_test(radiographs):
    return radiographs.folder / "test_list.txt"


def test_a_folder_that_is_not_there_is_refused_with_what_to_get(tmp_path):
    text = refusal(tmp_path)
    assert str(tmp_path / "chestxray14") in text
    for what in ("images_001.tar.gz", "train_val_list.txt", "nihcc.app.box.com"):
        assert what in text


def test_a_folder_without_pictures_is_refused_with_what_to_get(tmp_path):
    (tmp_path / "chestxray14").mkdir()
    text = refusal(tmp_path)
    assert "holds no pictures" in text
    assert "images_001.tar.gz" in text


@pytest.mark.parametrize(
    "old, new, count, texts",
    [
        ("Hernia", "Hiccups", 1, ["line 7", "Hiccups"]),
        ("Patient ID", "Number", -1, ["no column", "Patient ID"]),
        (",0,2,60", ",0,two,60", -1, ["line 8", "two"]),
        ("0000", "1111", -1, ["none of the 72 pictures"]),
    ],
    ids=["unknown finding", "missing column", "patient by name", "other pictures"],
)
def test_a_table_that_is_wrong_is_refused(radiographs, table, old, new, count, texts):
    table.write_text(table.read_text().replace(old, new, count))
    text = refusal(radiographs.data_dir)
    assert all(expected in text for expected in texts), text


def test_an_empty_table_is_refused(radiographs, table):
    table.write_text("")
    assert "no column" in refusal(radiographs.data_dir)


def test_a_missing_table_is_refused(radiographs, table):
    table.unlink()
    text = refusal(radiographs.data_dir)
    assert "Data_Entry_2017.csv" in text
    assert "table of labels" in text


def test_a_patient_on_both_lists_is_refused(radiographs, list_of_test):
    list_of_test.write_text(list_of_test.read_text() + radiographs.names[3] + "\n")
    assert "patient 1 is on both sides" in refusal(radiographs.data_dir)


def test_a_list_that_names_no_picture_is_refused(radiographs, list_of_test):
    list_of_test.write_text("nobody.png\n")
    assert "of the test part" in refusal(radiographs.data_dir)


def test_a_list_that_is_no_text_is_refused(radiographs, list_of_test):
    list_of_test.write_text(list_of_test.read_text(), encoding="utf-16")
    assert "UTF-8" in refusal(radiographs.data_dir)


def test_a_byte_order_mark_and_empty_rows_do_no_harm(radiographs, table, list_of_test):
    list_of_test.write_text("\ufeff" + list_of_test.read_text(), encoding="utf-8")
    table.write_text(table.read_text() + ",,,\n")
    assert len(radiographs.load().test_labels) == 18


def test_too_few_images_with_one_label_are_refused(tmp_path):
    Radiographs(tmp_path, findings=["Edema|Mass"])
    assert "use --dataset chestxray14-multi" in refusal(tmp_path)


def test_pictures_that_are_all_damaged_are_refused(radiographs):
    for number in radiographs.in_test():
        radiographs.picture(number).write_bytes(b"no picture")
    assert "every picture of the test part is damaged" in refusal(radiographs.data_dir)
