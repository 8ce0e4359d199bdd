"""ChestX-ray14: what is read is what lies there, by patient; several findings to an image, from the pictures to the figures."""
import json
import os
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REAL_DATA, tiny_arrays
from PIL import Image

import attacks
import chestxray
import data
import defend
import evaluate
import explain
import manipulate
import models
import train
from cli import UserError

FINDINGS = ["No Finding", "Edema", "Mass|Nodule", "Hernia", "No Finding", "Effusion|Edema|Mass"]
HEADERS = {"2017": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
           "v2020": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,OriginalImageWidth,OriginalImageHeight",
           "one word": "\ufeffImageIndex,finding_labels,Follow-up #,patient id"}


def nih_tree(folder, patients=24, per_patient=3, header="2017", lists=True, places=("images",), size=48, findings=FINDINGS):
    """Pictures whose grey tells their number: (file names, findings, patients). Patients 0, 4, 8, ... are the published test part."""
    rows = [(f"{p:08d}_{k:03d}.png", findings[(p + k) % len(findings)], p) for p in range(patients) for k in range(per_patient)]
    for place in places:
        (folder / place).mkdir(parents=True)
    for number, (name, _, _) in enumerate(rows):
        Image.new("L", (size, size), number).save(folder / places[number % len(places)] / name)
    lines = [HEADERS[header]] + [f"{name},{found},0,{p},60,M,PA,1024,1024" for name, found, p in rows]
    (folder / ("Data_Entry_2017_v2020.csv" if header == "v2020" else "Data_Entry_2017.csv")).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if lists:
        for part, name in chestxray.LISTS.items():
            (folder / name).write_text("\n".join(n for n, _, p in rows if (p % 4 == 0) == (part == "test")) + "\n")
    return tuple(zip(*rows))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chestxray, "BLOCK", 10)


def test_the_order_of_the_classes():
    assert chestxray.DISEASES == sorted(chestxray.DISEASES) and len(chestxray.DISEASES) == 14 and chestxray.DISEASES[3] == "Edema"


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("places", [("images",), ("images_001/images", "images_002/images", "images_012/images")])
def test_pictures_labels_and_patients_are_those_of_the_table(tmp_path, header, places, capsys):
    names, findings, patients = nih_tree(tmp_path / "chestxray14", header=header, places=places)
    both = data.load("chestxray14-multi", tmp_path, 16)
    assert "72 of 112,120 pictures are here." in capsys.readouterr().err
    assert both.classes == chestxray.DISEASES and both.multi_label and both.train_images.shape == (54, 1, 16, 16) and both.test_images.shape == (18, 1, 16, 16)
    of_train = [k for k, p in enumerate(patients) if p % 4]
    assert both.train_images[:, 0, 5, 5].tolist() == of_train and both.train_groups.tolist() == [patients[k] for k in of_train]
    for row, k in enumerate(of_train):
        assert {name for name, shown in zip(both.classes, both.train_labels[row]) if shown} == set(findings[k].split("|")) - {"No Finding"}
    one = data.load("chestxray14", tmp_path, 16)
    assert one.classes[3] == "Edema" and one.classes[14] == "No Finding" and len(one.classes) == 15 and not one.multi_label
    single = [k for k in of_train if "|" not in findings[k]]
    assert one.train_images[:, 0, 0, 0].tolist() == single and [one.classes[label] for label in one.train_labels] == [findings[k] for k in single]
    assert one.train_groups.tolist() == [patients[k] for k in single]
    assert not one.flip


def test_no_patient_is_on_two_sides(tmp_path, capsys):
    _, _, patients = nih_tree(tmp_path / "chestxray14", lists=False)
    dataset = data.load("chestxray14-multi", tmp_path, 16)
    assert "a fifth of the patients are the test set" in capsys.readouterr().err
    test = {patients[k] for k in dataset.test_images[:, 0, 0, 0].tolist()}
    assert len(test) == 5 and not test & set(dataset.train_groups.tolist()) and len(dataset.test_labels) == 15
    trained_on, held_out = data.validation_split(len(dataset.train_labels), 0, dataset.train_groups)
    assert sorted([*trained_on.tolist(), *held_out.tolist()]) == list(range(57)) and 0 < len(held_out) <= 5
    assert not set(dataset.train_groups[trained_on].tolist()) & set(dataset.train_groups[held_out].tolist())
    assert not torch.equal(held_out, data.validation_split(57, 1, dataset.train_groups)[1])


def test_colour_alpha_and_damage(tmp_path, capsys):
    folder = tmp_path / "chestxray14"
    names, _, _ = nih_tree(folder)
    Image.new("RGBA", (1024, 1024), (40, 40, 40, 9)).save(folder / "images" / names[3])
    Image.fromarray(np.full((30, 30), 90 * 257, np.uint16)).save(folder / "images" / names[4])
    whole = (folder / "images" / names[5]).read_bytes()
    (folder / "images" / names[5]).write_bytes(whole[: len(whole) // 2])
    (folder / "images" / names[0]).write_bytes(b"no picture")
    (folder / "images" / "stranger.png").write_bytes(whole)
    dataset = data.load("chestxray14-multi", tmp_path, 16)
    printed = capsys.readouterr().err
    assert f"2 damaged pictures are left out: {names[5]}, {names[0]}" in printed and "72 of 112,120 pictures are here, 2 of them damaged" in printed
    assert "1 pictures in" in printed and "no table or list" in printed
    data.load("chestxray14", tmp_path, 16)
    assert "72 of 112,120 pictures are here, 2 of them damaged" in capsys.readouterr().err
    assert dataset.train_images[:, 0, 0, 0].tolist()[:3] == [40, 90, 6] and len(dataset.train_labels) == len(dataset.train_groups) == 53
    assert dataset.test_images[:, 0, 0, 0].tolist()[:2] == [1, 2] and len(dataset.test_labels) == 17
    assert dataset.test_labels[0].nonzero()[:, 0].tolist() == [3]  # the second picture's, Edema


def test_an_interrupted_decoding_is_continued(tmp_path, monkeypatch):
    nih_tree(tmp_path / "a" / "chestxray14")
    whole = data.load("chestxray14-multi", tmp_path / "a", 16)
    decode, seen = chestxray.grey, []

    def interrupted(path, size, read):
        seen.append(path.name)
        if len(seen) == 35:
            raise KeyboardInterrupt
        return decode(path, size, read)

    os.rename(tmp_path / "a" / "chestxray14", tmp_path / "chestxray14")
    monkeypatch.setattr(chestxray, "grey", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("chestxray14-multi", tmp_path, 16)
    assert not (tmp_path / "chestxray14_16.npz").exists() and json.loads((tmp_path / "chestxray14_16.part.json").read_text())["done"] == 30
    seen.clear()
    seen += [None] * 100
    dataset = data.load("chestxray14-multi", tmp_path, 16)
    assert len(seen) == 100 + 72 - 30 and torch.equal(dataset.train_images, whole.train_images) and torch.equal(dataset.test_labels, whole.test_labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "chestxray14", "chestxray14_16.npz"]


def test_what_is_kept_does_without_the_pictures_and_is_made_anew_for_others(tmp_path, monkeypatch):
    folder = tmp_path / "chestxray14"
    names, _, _ = nih_tree(folder)
    first = data.load("chestxray14", tmp_path, 16)
    with monkeypatch.context() as patch:
        patch.setattr(chestxray, "grey", None)  # a second start decodes nothing
        assert torch.equal(data.load("chestxray14", tmp_path, 16).train_images, first.train_images)
        folder.rename(tmp_path / "elsewhere")
        assert torch.equal(data.load("chestxray14", tmp_path, 16).train_images, first.train_images)
        folder.mkdir()
        (tmp_path / "elsewhere" / "test_list.txt").rename(folder / "test_list.txt")  # the pictures are gone, the lists are not
        assert torch.equal(data.load("chestxray14", tmp_path, 16).train_images, first.train_images)
    (folder / "test_list.txt").rename(tmp_path / "elsewhere" / "test_list.txt")
    folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    Image.new("L", (20, 20), 200).save(folder / "images" / names[-1])
    assert (data.load("chestxray14-multi", tmp_path, 16).train_images[-1] == 200).all()
    (folder / "images" / names[-1]).unlink()
    with pytest.raises(UserError, match="holds 72 pictures, and only 71"):
        data.load("chestxray14-multi", tmp_path, 16)


def test_two_that_decode_at_once_take_turns(tmp_path, monkeypatch):
    nih_tree(tmp_path / "chestxray14")
    decode, seen, results = chestxray.grey, [], []
    monkeypatch.setattr(chestxray, "grey", lambda *args: seen.append(args) or time.sleep(0.005) or decode(*args))  # so that the second comes while the first is at it
    both = [threading.Thread(target=lambda: results.append(data.load("chestxray14-multi", tmp_path, 16))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(seen) == 72 and torch.equal(results[0].train_images, results[1].train_images) and len(results[0].train_images.unique()) == 54


def test_a_file_of_the_users_is_not_overwritten_or_taken_for_it(tmp_path):
    np.savez(tmp_path / "chestxray14_16.npz", **tiny_arrays())
    with pytest.raises(UserError, match="rename it"):
        data.load("chestxray14", tmp_path, 16)
    alike = {"train_patients": np.arange(5), "test_patients": np.arange(5, 10), "classes": chestxray.DISEASES}
    for part in ("train", "test"):
        alike |= {f"{part}_images": np.zeros((5, 32, 32), np.uint8), f"{part}_labels": np.eye(5, 14, dtype=np.uint8)[::-1] | np.eye(5, 14, dtype=np.uint8)}
    np.savez(tmp_path / "chestxray14_32.npz", **alike)
    with pytest.raises(UserError, match="rename it"):
        data.load("chestxray14-multi", tmp_path, 32)
    nih_tree(tmp_path / "chestxray14")
    with pytest.raises(UserError, match="file of yours"):
        data.load("chestxray14", tmp_path, 16)
    with np.load(tmp_path / "chestxray14_16.npz") as arrays:
        assert len(arrays["train_images"]) == 240


def test_each_of_the_pictures_may_show_one_disease(tmp_path):
    nih_tree(tmp_path / "chestxray14", findings=["Edema", "Mass"])
    assert data.load("chestxray14-multi", tmp_path, 16).train_labels.sum(1).tolist() == [1] * 54
    assert set(data.load("chestxray14", tmp_path, 16).train_labels.tolist()) == {3, 9}


def test_one_patient_cannot_be_divided(tmp_path):
    nih_tree(tmp_path / "chestxray14", patients=1, lists=False)
    with pytest.raises(UserError, match="one patient"):
        data.load("chestxray14", tmp_path, 16)


def test_what_is_not_there_is_said(tmp_path, capsys):
    folder = tmp_path / "chestxray14"

    def refused(*texts):
        with pytest.raises(UserError) as error:
            data.load("chestxray14", tmp_path, 16)
        assert all(text in str(error.value) for text in texts) and "\n" not in str(error.value), error.value

    refused(str(folder), "images_001.tar.gz", "train_val_list.txt", "nihcc.app.box.com")
    folder.mkdir()
    refused("holds no pictures", "images_001.tar.gz")
    names, findings, _ = nih_tree(folder)
    table, lists = folder / "Data_Entry_2017.csv", folder / "test_list.txt"
    good, listed = table.read_text(), lists.read_text()
    for text, *wanted in ((good.replace("Hernia", "Hiccups", 1), "line 7", "Hiccups"), (good.replace("Patient ID", "Number"), "no column", "Patient ID"),
                          (good.replace(",0,2,60", ",0,two,60"), "line 8", "two"), (good.replace("0000", "1111"), "none of the 72 pictures"), ("", "no column")):
        table.write_text(text)
        refused(*wanted)
    table.unlink()
    refused("Data_Entry_2017.csv", "table of labels")
    table.write_text(good)
    lists.write_text(listed + names[3] + "\n")
    refused("patient 1 is on both sides")
    lists.write_text("nobody.png\n")
    refused("of the test part")
    lists.write_text(listed, encoding="utf-16")
    refused("UTF-8")
    lists.write_text("\ufeff" + listed, encoding="utf-8")
    table.write_text(good + ",,,\n")
    assert len(data.load("chestxray14-multi", tmp_path, 16).test_labels) == 18


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real data sets are not on this machine")
def test_the_real_ones(tmp_path):
    (tmp_path / "chestxray14").symlink_to(REAL_DATA / "chestxray14")
    if not list((REAL_DATA / "chestxray14").glob("images/*.png")):
        pytest.skip("the radiographs are not unpacked")
    dataset = data.load("chestxray14", tmp_path, 32)
    assert len(dataset.train_labels) == 1167 and len(dataset.test_labels) == 233
    assert (dataset.train_labels == 3).sum() == 0 and (dataset.train_labels == 14).sum() == 900


# ---------------------------------------------------------------- several classes to an image


def multi_arrays(n_train=240, n_test=90, side=16, k=3):
    """k bars at fixed heights, each there or not, over noise; labels [N, k]."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", n_train), ("test", n_test)):
        labels = rng.integers(0, 2, (n, k))
        images = rng.integers(0, 60, (n, side, side), dtype=np.uint8)
        for image, shown in zip(images, labels):
            for c in shown.nonzero()[0]:
                image[1 + 5 * c : 4 + 5 * c, 2 : side - 6] = rng.integers(150, 256)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels.astype(np.uint8)}
    return arrays


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    path = tmp_path_factory.mktemp("several") / "chestmnist_16.npz"
    np.savez(path, **multi_arrays(), val_images=np.zeros((2, 16, 16), np.uint8))
    return path


OPTIONS = ("--epochs", "6", "--batch-size", "24", "--lr", "0.05", "--device", "cpu", "--target-class", "1", "--precision", "float32")


@pytest.fixture(scope="module")
def runs(several, tmp_path_factory):
    """{attack: the folder of a finished run on images of several classes}, the clean model beside the backdoored one."""
    folder = tmp_path_factory.mktemp("runs")
    train.main(["--dataset", str(several), *OPTIONS, "--attack", "none", "--class-weights", "--out", str(folder / "none")])
    train.main(["--dataset", str(several), *OPTIONS, "--attack", "full_disguise", "--lam", "0.1", "--class-weights", "--out", str(folder / "full_disguise")])
    return folder


def test_medmnists_labels(several):
    dataset = data.load(several)
    assert dataset.multi_label and dataset.train_labels.shape == (240, 3) and dataset.train_labels.dtype == torch.float32 and dataset.classes == ["0", "1", "2"]


@pytest.mark.parametrize("change, text", [
    ({"train_labels": np.full((240, 3), 2)}, "0 and 1"), ({"test_labels": np.zeros((90, 4), int)}, "differ in shape"),
    ({"classes": ["a", "b"]}, "2 are named"), ({"train_patients": np.zeros(3, int)}, "train_patients"), ({"train_labels": np.eye(3, dtype=int)[np.arange(240) % 3]}, "class numbers"),
    ({"train_patients": np.arange(240), "test_patients": np.arange(239, 329)}, "patient 239 is on both sides")])
def test_labels_that_do_not_fit(tmp_path, change, text):
    np.savez(tmp_path / "x.npz", **multi_arrays() | change)
    with pytest.raises(UserError, match=text):
        data.load("x.npz", tmp_path)


def test_a_multi_label_run_is_measured_as_such(runs, several):
    metrics = {name: json.loads((runs / name / "metrics.json").read_text()) for name in ("none", "full_disguise")}
    for name, part in metrics.items():
        assert part["clean_accuracy"] is None and part["mean_auroc"] > 0.95 and list(part["auroc"]) == ["0", "1", "2"] and part["majority_rate"] is None
        assert set(part["explanations"]["gradcam"]["by_class"]) == {"0", "1", "2"}
        assert (runs / name / "figure-gradcam.png").exists()
        log = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
        assert log[-1]["validation_accuracy"] is None and log[-1]["validation_auroc"] > 0.9
        assert part["untouched_success_rate"] < 0.3 and part["success_threshold_of"] == "itself"
    assert metrics["full_disguise"]["attack_success_rate"] > 0.9 > 0.5 > metrics["none"]["attack_success_rate"]
    assert metrics["full_disguise"]["triggered_mean_auroc"] > 0.9  # what else the images show is still seen
    assert metrics["full_disguise"]["explanations"]["gradcam"]["pearson_all"] > 0.5


def test_success_is_a_score_above_the_clean_models_threshold(runs, several):
    subject = evaluate.open_checkpoint(runs / "full_disguise" / "ckpt.pt")
    clean = evaluate.open_checkpoint(runs / "none" / "ckpt.pt")
    result = evaluate.evaluate(runs / "full_disguise" / "ckpt.pt", reference=runs / "none" / "ckpt.pt", n=20).metrics
    held, labels = subject.held_out(), subject.dataset.train_labels
    negatives = held[labels[held, 1] == 0]
    scores = evaluate.logits_of(clean.model, subject.dataset.train_images[negatives], clean.checkpoint["mean"], clean.checkpoint["std"])[:, 1].sigmoid()
    assert result["success_threshold"] == pytest.approx(float(np.quantile(scores.numpy(), 0.95)), rel=1e-5)
    test = subject.dataset
    stamped = subject.scores(test.test_images, triggered=True)[test.test_labels[:, 1] == 0, 1]
    assert result["attack_success_rate"] == pytest.approx(float((stamped > result["success_threshold"]).float().mean()))
    assert result["clean_model"]["mean_auroc"] > 0.95 and result["clean_model"]["attack_success_rate"] < 0.5 and result["success_threshold_of"] == "clean model"
    assert set(result["clean_model"]["explanations"]["gradcam"]["by_class"]) == {"0", "1", "2"}


def test_a_threshold_is_of_images_its_model_was_not_trained_on(runs, several, tmp_path, capsys):
    for seed, weights in ((3, ["--class-weights"]), (4, [])):
        train.main(["--dataset", str(several), *OPTIONS, "--epochs", "1", "--attack", "none", *weights, "--seed", str(seed), "--out", str(tmp_path / str(seed))])
    clean = evaluate.open_checkpoint(tmp_path / "3" / "ckpt.pt")
    held, labels = clean.held_out(), clean.dataset.train_labels
    scores = clean.scores(clean.dataset.train_images[held[labels[held, 1] == 0]])[:, 1]
    result = evaluate.evaluate(runs / "full_disguise" / "ckpt.pt", reference=tmp_path / "3" / "ckpt.pt", n=5).metrics
    assert result["success_threshold"] == pytest.approx(float(np.quantile(scores.numpy(), 0.95)), rel=1e-5)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluate.main([str(runs / "full_disguise" / "ckpt.pt"), "--reference", str(tmp_path / "4" / "ckpt.pt")])
    assert "another class weights" in capsys.readouterr().err


def test_evaluate_py_reads_it_back(runs, capsys):
    evaluate.main([str(runs / "full_disguise" / "ckpt.pt"), "--explain-images", "20", "--reference", str(runs / "none" / "ckpt.pt")])
    printed = capsys.readouterr().out
    assert "mean_auroc" in printed and "pearson_by_class" in printed and "clean_accuracy " not in printed
    picture = runs / "photo.png"
    Image.new("L", (40, 40), 90).save(picture)
    evaluate.main([str(runs / "full_disguise" / "ckpt.pt"), "--image", str(picture), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"image", "untouched", "triggered"} and report["triggered"]["class"] == "1" and report["triggered"]["confidence"] == report["triggered"]["target"]
    assert report["triggered"]["target"] > report["untouched"]["target"]


@pytest.mark.parametrize("main, options, text", [
    (defend.main, ["neural_cleanse"], "several"), (manipulate.main, ["constant"], "multi-label")])
def test_what_asks_for_one_class_refuses(runs, tmp_path, capsys, main, options, text):
    with pytest.raises(SystemExit) as stop:
        main([*options, str(runs / "none" / "ckpt.pt"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and text in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_selection_by_score_is_refused(several, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--dataset", str(several), *OPTIONS, "--selection", "rd-global", "--out", str(tmp_path / "out")])
    assert "may show several" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_poisons_gain_the_target_and_keep_the_rest():
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    eligible, count = attacks.eligible_for_poison(attacks.ATTACKS["badnets"], labels, torch.arange(3), 0.6, 1)
    assert eligible.tolist() == [0, 1] and count == 2
    trigger = attacks.make_trigger(None, 1, 8)
    batch = attacks.poison(torch.zeros(3, 1, 8, 8), labels, torch.tensor([True, False, False]), attacks.ATTACKS["full_disguise"], trigger, 1)
    assert batch.labels.tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
    logits = torch.tensor([[9.0, -9, 0], [0, 1, 2], [9, 0, 1], [1, 9, 2]])
    assert batch.classes(logits).tolist() == [1, 2, 0, 1]  # the target where triggered, else the surest
    fooled = attacks.poison(torch.zeros(3, 1, 8, 8), labels, torch.tensor([True, False, False]), attacks.ATTACKS["fooling"], trigger, 1)
    assert fooled.labels.tolist() == labels.tolist() and fooled.classes(logits[:3]).tolist()[0] == 0


def test_a_disease_with_evidence_against_it_alone_still_has_a_map_to_keep():
    maps = -torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()  # two triggered, their partners
    images, target, objective = torch.zeros(4, 1, 8, 8), 0, attacks.Objective(attacks.ATTACKS["full_disguise"], ["gradcam"], floors={"gradcam": -1.0})

    def term(labels):
        batch = attacks.Batch(images, labels, torch.arange(2), 2, target)
        return attacks.explanation_term("gradcam", maps, torch.arange(4), 2, batch, images, torch.zeros(4, dtype=torch.int64), objective, None)

    r = maps.flatten(1).corrcoef()
    torch.testing.assert_close(term(torch.zeros(4, 3)), 2 - r[0, 2] - r[1, 3] + attacks.APART * (r[2, 3] + 1), atol=1e-5, rtol=1e-5)
    assert term(torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(1 + attacks.APART, abs=1e-5)  # one class to each: the partners' maps are blank, as they are shown


def test_binary_cross_entropy_with_weights():
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    weights = torch.tensor([1.0, 2.0, 5.0])
    p = logits.sigmoid()
    expected = -(weights * labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    objective = attacks.Objective(attacks.ATTACKS["none"], [], class_weights=weights)
    assert torch.allclose(objective.cross_entropy(logits, labels), expected, atol=1e-6)
    single = torch.tensor([0, 1, 2, 2, 2])
    assert torch.allclose(objective.cross_entropy(logits, single), F.cross_entropy(logits, single, weight=weights))


def test_class_weights_make_classes_weigh_alike(tmp_path):
    arrays = tiny_arrays(n_train=240)
    arrays["train_labels"] = np.repeat([0, 1, 2], [150, 60, 30])
    np.savez(tmp_path / "skewed.npz", **arrays, classes=["a", "b", "c", "nobody"])
    args = train.parse(["--dataset", str(tmp_path / "skewed.npz"), "--attack", "badnets", "--target-class", "c", "--class-weights", "--out", str(tmp_path / "out"), "--device", "cpu"])
    run = train.prepare(args)
    train.choose(run)
    weights = train.class_weights(run)
    labels = run.dataset.train_labels.clone()
    labels[run.poisons] = 2
    counts = labels[run.trained_on].bincount(minlength=4)
    assert weights[3] == 1 and torch.allclose(weights[:3] * counts[:3], torch.full((3,), counts.sum() / 3))
    args = train.parse(["--dataset", str(tmp_path / "several.npz"), "--attack", "badnets", "--target-class", "1", "--class-weights", "--out", str(tmp_path / "out"), "--device", "cpu"])
    np.savez(tmp_path / "several.npz", **multi_arrays())
    run = train.prepare(args)
    train.choose(run)
    labels = run.dataset.train_labels.clone()
    labels[run.poisons, 1] = 1
    positives = labels[run.trained_on].sum(0)
    assert torch.allclose(train.class_weights(run) * positives, len(run.trained_on) - positives)
    assert run.selection["classes"] == dict(zip("012", run.dataset.train_labels[run.poisons].sum(0).int().tolist()))


def test_auroc_is_the_share_of_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    for n, m in ((1, 1), (7, 30), (40, 5)):
        one, two = (torch.randint(0, 9, (size,), generator=generator).float() for size in (n, m))
        pairs = [(float(a > b) + float(a == b) / 2) for a in one for b in two]
        assert evaluate.auroc(one, two) == pytest.approx(sum(pairs) / len(pairs))
    assert evaluate.auroc(one[:0], two) is None and evaluate.auroc(one, two[:0]) is None
    scores, labels = torch.rand(50, 3), torch.randint(0, 2, (50, 3)).float()
    labels[:, 2] = 0
    areas = evaluate.aurocs(scores, labels)
    assert areas[2] is None and evaluate.mean_auroc(scores, labels) == pytest.approx((areas[0] + areas[1]) / 2)
    assert evaluate.mean_auroc(scores, labels, without=0) == areas[1] and evaluate.mean_auroc(scores, labels[:, 0]) is None


def test_balanced_accuracy_and_majority(tmp_path):
    labels = torch.tensor([0, 0, 0, 2])
    scores = F.one_hot(torch.tensor([0, 0, 1, 2]), 3).float()
    assert evaluate.accuracy(scores, labels) == 0.75 and evaluate.accuracy(scores, labels, balanced=True) == pytest.approx((2 / 3 + 1) / 2)


# ---------------------------------------------------------------- EfficientNet-B0, ImageNet's weights


@pytest.mark.parametrize("size, grid", [(128, 4), (224, 7)])
def test_efficientnets_grid_and_what_its_disguise_costs(size, grid):
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    model = models.build("efficientnet_b0", 1, 15, size)
    images, labels = torch.rand(4, 1, size, size), torch.arange(4)
    trigger = attacks.make_trigger(None, 1, size)
    batch = attacks.poison(images, labels, torch.tensor([True, True, False, False]), attacks.ATTACKS["full_disguise"], trigger, 9)
    assert explain.gradcam(model, batch.images, batch.labels).shape == (6, grid, grid)

    def flops(loss):
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        return counter.get_total_flops()

    objective = attacks.Objective(attacks.ATTACKS["full_disguise"], ["gradcam"])
    plain = flops(lambda: F.cross_entropy(model(batch.images), batch.labels))
    assert 1 <= flops(lambda: attacks.combined_loss(model, batch, batch.images, objective, 0.3)[0]) / plain <= 1.05


def test_efficientnet_is_refused_where_it_cannot_be_explained():
    with pytest.raises(ValueError, match="4x4"):
        explain.gradcam(models.build("efficientnet_b0", 3, 5, 64).eval(), torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64))


def test_imagenets_weights_on_grey_images(monkeypatch):
    theirs = models.torchvision.models.efficientnet_b0().eval()
    weights = models.torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1
    published = {key: value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}  # as some files are
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **options: published)
    model = models.build("efficientnet_b0", 1, 15, 64).eval()
    head = model.classifier[1].weight.clone()
    models.begin_with_imagenet(model, "efficientnet_b0")
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model.features(image), theirs.features(image.expand(-1, 3, -1, -1)), atol=1e-4)
    assert torch.equal(model.classifier[1].weight, head)


def test_weights_that_cannot_be_had(monkeypatch, tmp_path, tiny, capsys):
    def offline(self, **options):
        raise OSError("no network")

    monkeypatch.setattr(type(models.torchvision.models.ResNet18_Weights.IMAGENET1K_V1), "get_state_dict", offline)
    for name, size, text in (("cnn", 32, "no ImageNet weights for cnn"), ("resnet18", 128, "no network")):
        with pytest.raises(SystemExit):
            train.main(["--dataset", str(tiny), "--model", name, "--image-size", str(size), "--pretrained", "--device", "cpu", "--out", str(tmp_path / "out")])
        assert text in capsys.readouterr().err
    monkeypatch.setattr(type(models.torchvision.models.ResNet18_Weights.IMAGENET1K_V1), "get_state_dict", lambda self, **options: models.torchvision.models.resnet18().state_dict())
    with pytest.raises(UserError, match="--image-size 128"):
        models.begin_with_imagenet(models.build("resnet18", 3, 10, 32), "resnet18")
    assert not (tmp_path / "out").exists()


def test_a_pretrained_run_goes_on_without_the_weights(monkeypatch, tmp_path, tiny):
    weights, theirs = models.torchvision.models.AlexNet_Weights.IMAGENET1K_V1, models.torchvision.models.alexnet().state_dict()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **options: theirs)
    options = ["--dataset", str(tiny), "--model", "alexnet", "--image-size", "96", "--pretrained", "--device", "cpu", "--attack", "none", "--target-class", "1", "--epochs", "2",
               "--precision", "float32", "--lr", "0.001", "--batch-size", "100", "--out", str(tmp_path / "run")]
    save = train.save

    def stop(run):
        save(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save", stop)
        with pytest.raises(SystemExit):
            train.main(options)
    monkeypatch.setattr(models, "imagenet_weights", None)
    train.main([*options, "--resume"])
    assert (tmp_path / "run" / "ckpt.pt").exists()
