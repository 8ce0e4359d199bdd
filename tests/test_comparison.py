"""Several checkpoints: the same test images under each, as one picture, and all figures by path."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import metrics_of, tiny_arrays, train_tiny
from PIL import Image
from placing import DEVICE

import comparison
import evaluate
import figure
import fonts
import ours
import tasks

ON_CPU = ["--device", DEVICE]
FEW = ["--explain-images", "9"]
ATTACKS = ("none", "badnets", "red_herring")


def copied(run_under, folder, names=ATTACKS):
    """Runs under these attacks, copied into a folder of their own."""
    for name in names:
        (folder / name).mkdir(parents=True)
        shutil.copy(run_under(name) / "ckpt.pt", folder / name)
    return [str(folder / name / "ckpt.pt") for name in names]


@pytest.fixture(scope="module")
def three(run_under, tmp_path_factory):
    """(folder, paths): three runs below a common folder, measured without --out."""
    folder = tmp_path_factory.mktemp("three") / "runs"
    paths = copied(run_under, folder)
    evaluate.main([*paths, *ON_CPU, *FEW])
    return folder, paths


@pytest.fixture(scope="module")
def results(three):
    """{path: Result} of the three runs, the same data held once."""
    measured = {
        path: evaluate.evaluate(path, n=9, device=torch.device(DEVICE)) for path in three[1]
    }
    comparison.share_data(measured)
    return measured


# ---------------------------------------------------------------- files


def test_without_out_the_comparison_lies_in_the_common_folder(three):
    folder, paths = three
    record = json.loads((folder / "comparison.json").read_text())
    assert record == {path: metrics_of(Path(path).parent) for path in paths}
    assert Image.open(folder / "comparison.png").width > 600


def test_with_out_the_comparison_lies_there(three, tmp_path, capsys):
    evaluate.main([*three[1][:2], *ON_CPU, *FEW, "--out", str(tmp_path)])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["1", "2", "comparison.json", "comparison.png"]
    expected = f"Written: {tmp_path / 'comparison.json'}, comparison.png"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_folders_of_runs_are_compared_too(three, tmp_path):
    folders = [os.path.dirname(path) for path in three[1][:2]]
    evaluate.main([*folders, *ON_CPU, *FEW, "--out", str(tmp_path)])
    assert list(json.loads((tmp_path / "comparison.json").read_text())) == three[1][:2]


def test_one_checkpoint_is_no_comparison(three, tmp_path):
    path = three[1][0]
    evaluate.main([path, path, *ON_CPU, *FEW, "--out", str(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "metrics.json"]


def test_as_json_the_figures_are_printed_alone_and_the_comparison_is_written(
    three, tmp_path, capsys
):
    evaluate.main([*three[1], *ON_CPU, *FEW, "--json", "--out", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "comparison.json").read_text())


def test_one_picture_under_several_checkpoints_is_no_comparison_of_test_images(three, tmp_path):
    Image.fromarray(tiny_arrays()["test_images"][0]).save(tmp_path / "own.png")
    image = ["--image", str(tmp_path / "own.png")]
    evaluate.main([*three[1][:2], *ON_CPU, *image, "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "2"]


@pytest.mark.parametrize("side", [16, 24])
def test_of_different_data_there_is_the_table_alone(side, three, tmp_path, capsys):
    """Other images of the same size, and of another one; an older picture would be of others."""
    arrays = tiny_arrays(side=side)
    arrays["test_images"] = np.ascontiguousarray(arrays["test_images"][::-1])
    arrays["test_labels"] = arrays["test_labels"][::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    other = train_tiny(tmp_path / "other.npz", tmp_path / "run", "--epochs", "1")
    out = tmp_path / "out"
    out.mkdir()
    ours.save_picture(Image.new("RGB", (9, 9)), out / "comparison.png")
    capsys.readouterr()
    evaluate.main([three[1][0], str(other), *ON_CPU, *FEW, "--out", str(out)])
    printed = capsys.readouterr()
    assert "of different data: there is no common picture, only the table" in printed.err
    assert f"Written: {out / 'comparison.json'}\n" in printed.out
    assert "[2]" in printed.out and not (out / "comparison.png").exists()


def test_the_common_folder_is_below_the_current_one_where_that_is_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert comparison.common_folder(["runs/a/ckpt.pt", "runs/b/ckpt.pt"]) == Path("runs")
    assert comparison.common_folder(["a/ckpt.pt", "b/ckpt.pt"]) == Path(".")


def test_the_root_of_a_disk_is_no_place_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert comparison.common_folder(["/some/a/ckpt.pt", "/where/b/ckpt.pt"]) == Path(".")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/ckpt.pt", "runs/b/ckpt.pt"], ["a", "b"]),
        (["runs/a/ckpt.pt", "runs/a/defend-prune/ckpt.pt"], ["a", "a/defend-prune"]),
        (["x/a/ckpt.pt", "y/a/ckpt.pt"], ["x/a", "y/a"]),
        (["one.pt", "two.pt"], ["one.pt", "two.pt"]),
    ],
)
def test_names_are_what_tells_the_paths_apart(paths, names):
    assert comparison.short_names(paths) == names


# ---------------------------------------------------------------- what is compared


def test_the_same_data_are_held_once(results):
    datasets = [result.subject.dataset for result in results.values()]
    assert all(dataset is datasets[0] for dataset in datasets)


def test_no_image_of_a_target_class_is_drawn(results):
    subjects = [result.subject for result in results.values()]
    rows = comparison.drawn_rows(subjects)
    labels = subjects[0].dataset.test_labels[rows]
    assert len(rows) == comparison.ROWS and not (labels == 1).any()
    other = subjects[1].checkpoint | {"config": subjects[1].config | {"target_class": 2}}
    rows = comparison.drawn_rows([subjects[0], dataclasses.replace(subjects[1], checkpoint=other)])
    assert (subjects[0].dataset.test_labels[rows] == 0).all()


def test_where_every_class_is_a_target_all_images_are_drawn_from(results):
    subject = next(iter(results.values())).subject
    every = []
    for k in range(3):
        config = subject.config | {"target_class": k}
        every.append(
            dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})
        )
    assert len(comparison.drawn_rows(every)) == comparison.ROWS


def measured(**trained):
    """Metrics of a checkpoint measured with these explainers, trained against or not."""
    return {"explanations": {k: {"trained_against": part} for k, part in trained.items()}}


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ([measured(gradcam=True, gradient=False)] * 2, ["gradcam", "gradient"]),
        ([measured(gradcam=False, gradient=False)] * 2, ["gradcam", "gradient"]),
        (
            [measured(deepshap=True, gradcam=False, gradient=False), measured(gradcam=False)],
            ["gradcam"],
        ),
        (
            [measured(gradcam=False, gradient=False), measured(gradient=True, gradcam=False)],
            ["gradient", "gradcam"],
        ),
    ],
)
def test_an_explainer_trained_against_and_one_that_was_not_are_shown(metrics, names):
    assert comparison.explainers_compared(metrics) == names


def test_captions_are_what_each_checkpoint_predicts_red_where_the_trigger_changes_it(results):
    values = list(results.values())
    rows = comparison.drawn_rows([result.subject for result in values])
    panels = comparison.section(values, "gradcam", rows, alone=True)
    assert [len(row) for row in panels] == [2 + 2 * 3] * len(rows)
    for k, row in enumerate(rows.tolist()):
        for j, result in enumerate(values):
            pair = panels[k][2 + 2 * j : 4 + 2 * j]
            for (_, caption, warn), classes in zip(pair, result.answers.classes):
                assert caption.split()[0] == result.subject.classes[int(classes[row])]
                assert warn == (classes[row] != result.answers.classes[0][row]).item()


def test_every_checkpoint_shows_its_own_map_of_the_same_images(results):
    values = list(results.values())
    rows = comparison.drawn_rows([result.subject for result in values])
    panels = comparison.section(values, "gradient", rows, alone=True)
    images = values[0].subject.dataset.test_images[rows]
    for j, result in enumerate(values):
        subject = result.subject
        maps = subject.explain("gradient", images, result.answers.classes[0][rows])
        for k in range(len(rows)):
            plain = images[k].float() / 255
            expected = figure.panel(plain, maps[k], width=comparison.PANEL)
            assert panels[k][2 + 2 * j][0].tobytes() == expected.tobytes()


def test_where_triggers_differ_every_block_shows_its_own(results):
    values = list(results.values())
    moved = dataclasses.replace(values[1].subject.trigger, row=0, col=0)
    subjects = [result.subject for result in values]
    assert comparison.have_same_trigger(subjects)
    other = dataclasses.replace(
        values[1], subject=dataclasses.replace(values[1].subject, trigger=moved)
    )
    assert not comparison.have_same_trigger([values[0].subject, other.subject])
    rows = comparison.drawn_rows(subjects)
    panels = comparison.section([values[0], other], "gradcam", rows, alone=False)
    assert [len(row) for row in panels] == [1 + 3 * 2] * len(rows)
    assert panels[0][1][0].tobytes() != panels[0][4][0].tobytes()
    page = comparison.picture(dict(zip("ab", [values[0], other])))
    assert page.width > 7 * comparison.PANEL


def test_of_several_labels_the_summary_has_the_auroc():
    figures = {"attack": "none", "clean_accuracy": None, "mean_auroc": 0.75}
    text = comparison.summary(figures | {"attack_success_rate": None})
    assert text == "none\nmean AUROC 0.7500, success -"


def test_images_of_several_classes_are_compared(tmp_path):
    arrays = tiny_arrays(n_train=90, n_test=40)
    for split in ("train", "test"):
        labels = np.eye(3, dtype=np.int64)[arrays[f"{split}_labels"]]
        labels[::5, 2] = 1
        arrays[f"{split}_labels"] = labels
    np.savez(tmp_path / "several.npz", **arrays)
    paths = []
    for attack in ("none", "badnets"):
        out = tmp_path / "runs" / attack
        paths.append(train_tiny(tmp_path / "several.npz", out, "--attack", attack, "--epochs", "1"))
    evaluate.main([*map(str, paths), *ON_CPU, "--explain-images", "5"])
    assert Image.open(tmp_path / "runs" / "comparison.png").width > 600
    labels = torch.as_tensor(arrays["test_labels"])
    assert tasks.shows(labels, 1).any()


# ---------------------------------------------------------------- the page


def page_of(columns, sections=2, signed=False, name="name", caption="cat 99%"):
    """A block_sheet of two blocks; every panel is of a colour of its own."""
    colour = iter(range(1, 200))
    parts = []
    for _ in range(sections):
        rows = [
            [(Image.new("RGB", (64, 64), (next(colour), 90, 90)), caption, True)] * 1
            + [
                (Image.new("RGB", (64, 64), (next(colour), 90, 90)), caption, False)
                for _ in range(2 * columns - 1)
            ]
            for _ in range(2)
        ]
        parts.append(("gradcam", ["", "pearson_all 0.5"], rows))
    headers = ["map"] * columns
    blocks = [("test images", "", headers), (name, "none\naccuracy 1", headers)]
    return figure.block_sheet("Title", blocks, parts, "Footer", signed), next(colour) - 1


@pytest.mark.parametrize(("columns", "sections"), [(1, 1), (2, 2), (5, 1)])
def test_a_page_of_blocks_holds_every_panel(columns, sections):
    page, panels = page_of(columns, sections)
    count = {colour: n for n, colour in page.getcolors(1 << 20)}
    assert [count.get((k, 90, 90)) for k in range(1, panels + 1)] == [64 * 64] * panels


@pytest.mark.parametrize("signed", [False, True])
def test_a_page_of_blocks_has_room_for_its_scales(signed):
    page, _ = page_of(1, signed=signed)
    assert page.width >= (900 if signed else figure.LEAST_PAGE)


@pytest.mark.parametrize(
    "text", ["short", "a name that is far too long for its block", "", "äöü日本"]
)
def test_names_are_clipped_to_their_place(text):
    clipped = fonts.clipped(text, 13, 80)
    assert fonts.font(13, clipped).getlength(clipped) <= 80
    assert clipped == text or fonts.ELLIPSIS in clipped


def test_an_ascii_text_is_in_pillows_own_font():
    assert fonts.font(13, "cat 99%") is fonts.font(13)
    assert fonts.readable("cat", "class 3") == "cat"


def test_a_font_lacks_what_it_draws_as_a_missing_letter():
    assert fonts.has_letters(fonts.font(13), "cat 99%")
    assert not fonts.has_letters(fonts.font(13), "日本")


def test_where_no_font_has_the_letters_accents_are_left_out_or_the_class_is_its_number(monkeypatch):
    monkeypatch.setattr(fonts, "FONTS", ("no such font.ttf",))
    shown = {name: fonts.readable(name, "class 3") for name in ("Löwe", "日本", "crème brûlée")}
    assert shown["日本"] == "class 3"
    assert shown["Löwe"] in ("Löwe", "Lowe")
    assert shown["crème brûlée"] in ("crème brûlée", "creme brulee")
