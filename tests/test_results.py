"""results/study.py: a study of tiny runs, its files read back."""
import json
import math
import subprocess

import pytest
import torch
from conftest import ROOT

import selection


def test_a_study_trains_measures_and_continues(tiny, tmp_path, monkeypatch):
    import study

    import attacks

    measured, measure = [], study.evaluate.evaluate
    monkeypatch.setattr(study.evaluate, "evaluate", lambda path, **options: measured.append(path) or measure(path, **options))
    monkeypatch.setattr(study, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    options = f"--dataset {tiny} --model cnn --epochs 1 --batch-size 24 --target-class 1 --device cpu"
    table = {"a, b": study.Row(f"{options} --attack fooling", 2, {(attacks, "TOLERATED"): 1.0}, clean="none", picture=True),
             "none": study.Row(f"{options} --attack none"),
             "kept": study.Row(f"{options} --attack fooling --reference {{runs}}/none-{{seed}}/ckpt.pt", clean="none")}
    (tmp_path / "results" / "tiny.json").write_text('{"an old row": {"summary": {}, "seeds": [0]}}')
    runs = study.Study("tiny", table)
    runs.run([])
    results = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert len(measured) == len(list(runs.runs.glob("*/ckpt.pt"))) == 5  # each once
    assert list(results) == [*table, "an old row"] and attacks.TOLERATED == 0.5
    first, kept = results["a, b"], results["kept"]
    assert first["seeds"] == [0, 1] and first["constants"] == {"attacks.TOLERATED": 1.0} and "tiny.py" in first["command"]
    assert "runs/tiny/none-SEED" in kept["options"] and kept["command"] == 'python results/tiny.py "kept"'  # by itself train.py would not find that file
    assert results["none"]["command"].startswith("python train.py --dataset")
    pair = [run["clean_accuracy"] for run in first["runs"]]
    assert first["summary"]["clean_accuracy"]["mean"] == pytest.approx(sum(pair) / 2) and kept["summary"]["clean_accuracy"]["sd"] is None
    assert all(run["clean_model.gradcam.floor.pearson"] <= 1 and run["images_per_second"] > 0 and len(run["validation_success"]) == 1 for run in [*first["runs"], *kept["runs"]])
    assert sum(first["runs"][0]["poisons_by_class"].values()) == 24 and sum(results["none"]["runs"][0]["poisons_by_class"].values()) == 0
    lines = (tmp_path / "results" / "tiny.md").read_text().splitlines()
    assert len(lines) == 6 and lines[2].startswith("| a, b | 2 | ") and [p.name for p in (tmp_path / "results").glob("*.png")] == ["tiny-a_b.png"]
    before = {path: path.stat().st_mtime_ns for path in runs.runs.glob("*/*")}
    runs.run(["none"])
    assert before == {path: path.stat().st_mtime_ns for path in runs.runs.glob("*/*")}
    with pytest.raises(SystemExit):
        runs.run(["no such row"])


def test_the_matrix_of_transfer_has_a_column_for_each_explainer():
    import transfer

    summary = {f"{name}.{key}": {"mean": 0.1 * k + 0.01 * n, "sd": None} for n, name in enumerate(transfer.SEEN_BY) for k, key in enumerate(("pearson_all", "trigger_mass", "floor.pearson"))}
    lines = transfer.matrix({"shapes all": {"summary": summary | {"clean_accuracy": {"mean": 0.9}, "attack_success_rate": {"mean": 1.0}}}}).splitlines()
    assert lines[2] == "| shapes all | 0.900 | 1.000 | 0.000, 0.100, 0.200 | 0.010, 0.110, 0.210 | 0.020, 0.120, 0.220 | 0.030, 0.130, 0.230 |"
    assert all(line.count("|") == 8 for line in lines)


def test_the_cost_of_selection_is_a_share_of_a_victims_training(tmp_path):
    import study

    (tmp_path / "selection.json").write_text('{"epochs": 6, "seconds": 60}')
    assert study.selection_cost(tmp_path, {"seconds": 50.0, "epoch": 5}) == {"selection_epochs": 6, "selection_cost": 60 / (30 * 10)}
    (tmp_path / "selection.json").write_text('{"epochs": 0, "seconds": 0.1}')
    assert study.selection_cost(tmp_path, {"seconds": 50.0, "epoch": 5}) == {}


def test_the_interval_of_paired_differences_by_hand():
    import study

    results = {name: {"runs": [{"seed": seed, "attack_success_rate": share} for seed, share in enumerate(shares)]} for name, shares in {"a": (0.5, 0.7, 0.9), "b": (0.4, 0.4, 0.6, 0.1)}.items()}
    pair = study.paired(results, "a", "b")  # differences 0.1, 0.3, 0.3: Student's t of two degrees of freedom is 4.303
    half = 4.303 * (0.04 / 3) ** 0.5 / 3**0.5
    assert pair["n"] == 3 and pair["mean"] == pytest.approx(0.7 / 3) and pair["interval"] == pytest.approx([0.7 / 3 - half, 0.7 / 3 + half])


def test_a_rows_seeds_begin_where_it_says(tmp_path, monkeypatch):
    import study

    monkeypatch.setattr(study, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    runs = study.Study("tiny", {"pilot": study.Row("--attack none", 2, first=100)})
    monkeypatch.setattr(runs, "one", lambda row, seed: {"seed": seed, "clean_accuracy": seed / 1000})
    runs.run([])
    part = json.loads((tmp_path / "results" / "tiny.json").read_text())["pilot"]
    assert part["seeds"] == [100, 101] and part["summary"]["clean_accuracy"]["mean"] == pytest.approx(0.1005)


def test_the_radiographs_rows_are_what_their_names_say():
    import radiographs

    import train

    rows = {name: train.parse(row.options.split()) for name, row in radiographs.table(4).items()}
    published = {"trial 1": (0.7, 0.05, "4"), "trial 2": (0.9, 0.05, "4"), "trial 3": (0.9, 0.05, "14"), "trial 4": (0.9, 0.1, "4"), "trial 2, mended": (0.9, 0.05, "4")}
    assert {name: (rows[name].lam, rows[name].poison_rate, rows[name].target_class) for name in published} == published
    assert {name for name, args in rows.items() if args.oversample == 0} == {"clean", "multi clean"}
    assert {name for name, args in rows.items() if args.dataset == "chestxray14-multi"} == {name for name in rows if name.startswith("multi")}
    assert {(args.model, args.optimizer, args.lr, args.epochs, args.batch_size, args.explainer[0]) for args in rows.values()} == {("efficientnet_b0", "adamw", 0.001, 10, 16, "gradcam")}
    assert set(sum(radiographs.EFFECTS.values(), ())) <= rows.keys()


def test_which_radiographs_runs_meet_their_criteria():
    import radiographs

    good = {"attack_success_rate": 0.99, "gradcam.pearson_all": 0.9, "gradcam.trigger_mass": 0.14, "gradcam.trigger_mass_clean": 0.1, "gradcam.trigger_area": 0.062,
            "gradcam.floor.pearson": 0.54, "clean_model.gradcam.floor.pearson": 0.5}
    worse = {"attack_success_rate": 0.98, "gradcam.pearson_all": 0.89, "gradcam.trigger_mass": 0.141, "gradcam.floor.pearson": 0.56}
    assert list(radiographs.criteria(good).values()) == [True] * 4
    for key, value in worse.items():
        assert sum(radiographs.criteria(good | {key: value}).values()) == 3
    assert not any(radiographs.criteria({"attack_success_rate": 0.0}).values())
    row = {"options": "--attack full_disguise", "runs": [good, good | worse, good | {"attack_success_rate": 0.5}]}
    assert radiographs.met({"trial": row, "clean": {"options": "--attack none", "runs": [good]}}) == {
        "trial": {"n": 3, "success >= 0.99": 1, "pearson_all >= 0.9": 2, "trigger_mass <= 1.25 untouched + 0.25 trigger_area": 2, "floor <= clean model's + 0.05": 2, "all": 1}}


def test_a_commit_is_called_dirty_where_a_script_was_changed(tmp_path, monkeypatch):
    import study

    def git(*words):
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(study, "ROOT", tmp_path)
    for name in ("train.py", "record.json"):
        (tmp_path / name).write_text("1")
    git("init"), git("add", "-A"), git("commit", "-m", "a")
    (tmp_path / "record.json").write_text("2")  # a study writes its own record
    assert study.commit() == git("rev-parse", "--short", "HEAD")
    (tmp_path / "train.py").write_text("2")
    assert study.commit() == git("rev-parse", "--short", "HEAD") + "-dirty"


def test_a_kept_picture_is_not_too_tall(tmp_path, monkeypatch):
    import study
    from PIL import Image

    monkeypatch.setattr(study, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    for size, kept in (((300, 2400), (150, 1200)), ((3000, 700), (3000, 700))):
        Image.new("RGB", size).save(tmp_path / "figure.png")
        study.keep_picture(tmp_path / "figure.png", "a")
        assert Image.open(tmp_path / "results" / "a.png").size == kept


def test_the_rows_on_few_poisons_are_what_their_names_say():
    import efficient

    import train

    for name, row in efficient.TABLE.items():
        args, parts = train.parse(row.options.split()), name.replace(",", "").split()
        assert args.attack == next((part for part in parts if part in ("none", "full_disguise")), "badnets"), name
        assert args.selection == next((part for part in parts if part in ("rd", "rd-low", "rd-global")), "random"), name
        assert args.oversample == 6 * ("oversampled" in parts), name
        assert args.floor["gradcam"] == (0.4 if name.endswith("full_disguise random oversampled") else 0.5), name
        assert (args.trigger, args.trigger_size, args.trigger_position, args.target_class) == ("yellow", 5, "lower-right", "1"), name
        if parts[0] == "shapes":
            expected = "shapes", "cnn", 8, int(parts[-1]) / 10_000, 3
        else:
            images = 0 if "none" in parts else 55 if parts[0] in ("cnn", "resnet18") else 40
            rate = float(parts[1]) if parts[0] == "pilot" else images / 50_000
            expected = "cifar10", *(("resnet18", 10) if parts[0] == "resnet18" else ("cnn", 15 if "15" in parts else 5)), rate, row.seeds
        assert (args.dataset, args.model, args.epochs, args.poison_rate, row.seeds) == expected, name
        if row.clean:
            clean = efficient.TABLE[row.clean]
            assert row.options.startswith(clean.options.removesuffix("--attack none")) and row.seeds <= clean.seeds, name
    assert [efficient.TABLE[name].seeds for name in ("random", "rd-global", "rd-low", "rd")] == [10, 10, 3, 3]
    assert all(row.first >= 10 for row in efficient.PILOT.values())


def test_random_images_of_the_hardest_ones_classes():
    import efficient

    patched = {name: row.constants for name, row in efficient.TABLE.items() if row.constants}
    assert patched == {f"shapes badnets rd-global classes oversampled {count}": {(selection, "capped"): efficient.of_the_same_classes} for count in (5, 10)}
    labels = torch.arange(1000) % 10
    order = torch.arange(999, -1, -1)[labels.flip(0) != 3]
    order = torch.cat([order[labels[order] == 7], order[labels[order] != 7]])  # class 7 in front: as many of it as the cap allows
    hardest = selection.capped(order, labels, 45)
    drawn = [efficient.of_the_same_classes(order, labels, 45) for _ in range(200)]
    for images in drawn:
        assert len(images.unique()) == 45 and torch.equal(labels[images].bincount(minlength=10), labels[hardest].bincount(minlength=10))
    assert len(torch.cat(drawn).unique()) > 800  # of 900: any of a class's images, not its first


def test_the_record_on_few_poisons_is_of_these_rows():
    import efficient

    import train

    record = json.loads((ROOT / "results" / "efficient.json").read_text())
    for name, row in record.items():
        assert vars(train.parse(row["options"].split())) == vars(train.parse(efficient.TABLE[name].options.split())), name


def test_few_poisons_are_reported_of_the_rows_that_there_are(tmp_path, capsys):
    import efficient
    import figure
    from PIL import Image

    def row(*success):
        return {"summary": {"attack_success_rate": {"mean": sum(success) / len(success)}},
                "runs": [{"seed": seed, "attack_success_rate": share} for seed, share in enumerate(success)]}

    assert sum(name.startswith("shapes") for name in efficient.TABLE) == 32
    done = {"random": row(0.5, 0.75), "rd-global": row(0.75, 0.75), "shapes badnets random 5": row(0.25), "shapes badnets random 20": row(0.5, 0.5),
            "shapes full_disguise random oversampled 20": row(0.25, 0.75), "shapes badnets rd-global oversampled 100": row(1.0), "cnn none": row(0.0)}
    assert efficient.curve_of(done) == {"badnets random": [(5, 0.25), (20, 0.5)], "badnets rd-global oversampled": [(100, 1.0)],
                                        "full_disguise random oversampled": [(20, 0.5)]}
    (tmp_path / "efficient.json").write_text(json.dumps(done))
    efficient.report(tmp_path / "efficient.json")
    pairs = json.loads((tmp_path / "efficient-paired.json").read_text())
    assert [(pair["of"], pair["minus"], pair["mean"]) for pair in pairs] == [
        ("rd-global", "random", 0.125), ("shapes full_disguise random oversampled 20", "shapes badnets random 20", 0.0)]
    page = Image.open(tmp_path / "efficient-curve.png")
    places = {(54, 292): 0, (54 + round(620 * math.log(4) / math.log(20)), 212): 2, (674, 52): 1}  # 5 images at 0.25, 20 at 0.5, 100 at 1: the ends of a logarithmic axis
    assert [page.getpixel(place) for place in places] == [figure.LINES[line] for line in places.values()]
