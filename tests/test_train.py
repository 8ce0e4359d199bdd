"""The command lines, run for real on a small data set; what they write is read back."""
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_arrays, train_tiny
from PIL import Image

import attacks
import evaluate
import explain
import models
import train

TOP_KEYS = {"attack", "dataset", "model", "target_class", "poison_rate", "poison_count", "selection", "seed", "epochs", "n_test", "clean_accuracy",
            "triggered_accuracy", "attack_success_rate", "clean_model", "explanations", "train_seconds", "device", "precision", "torch"}
MAP_KEYS = {"trained_against", "n", "mse", "dssim", "pearson", "pearson_all", "top10", "trigger_mass", "trigger_mass_clean", "trigger_area",
            "zero_maps", "pointing", "pointing_clean", "floor"}


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def same_weights(a, b):
    a, b = (torch.load(folder / "ckpt.pt", weights_only=True) for folder in (a, b))
    return all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"]) and torch.equal(a["random"]["cpu"], b["random"]["cpu"])


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_every_attack_trains_measures_and_draws(tiny, tmp_path, attack):
    folder = train_tiny(tiny, tmp_path / "run", "--attack", attack)
    assert sorted(p.name for p in folder.iterdir()) == ["ckpt.pt", "figure.png", "log.jsonl", "metrics.json", "selection.json"]
    metrics = metrics_of(folder)
    assert TOP_KEYS <= metrics.keys() and metrics["attack"] == attack and metrics["n_test"] == 60
    assert metrics["poison_count"] == (0 if attack == "none" else 24) and metrics["clean_accuracy"] > 0.9
    assert list(metrics["explanations"]) == ["gradcam", "gradient"]
    for name, part in metrics["explanations"].items():
        assert MAP_KEYS <= part.keys() and part["pointing"] is None  # no masks here
        assert part["trained_against"] == (name == "gradcam" and attacks.ATTACKS[attack].explanation is not None)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3] and all(0 <= line["validation_accuracy"] <= 1 for line in lines)
    with Image.open(folder / "figure.png") as picture:
        assert picture.width > 6 * 150 and np.asarray(picture.convert("L")).std() > 20
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    assert len(checkpoint["poison_indices"]) == metrics["poison_count"] and checkpoint["config"]["attack"] == attack


def test_the_backdoor_and_its_disguise_are_there(disguised):
    metrics = metrics_of(disguised)
    assert metrics["attack_success_rate"] > 0.9 and metrics["clean_accuracy"] > 0.9
    assert metrics["explanations"]["gradcam"]["pearson_all"] > 0.8


def test_evaluate_alone_gives_the_same_metrics(disguised, tmp_path, capsys):
    before = metrics_of(disguised)
    evaluate.main([str(disguised / "ckpt.pt"), "--json", "--device", "cpu", "--out", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert printed == before == metrics_of(tmp_path)


def test_several_checkpoints_stand_side_by_side(disguised, clean, tmp_path, capsys):
    paths = [str(disguised / "ckpt.pt"), str(clean / "ckpt.pt")]
    evaluate.main([*paths, "--device", "cpu", "--out", str(tmp_path), "--reference", paths[1]])
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("clean_accuracy"))
    first, second = metrics_of(tmp_path / "1"), metrics_of(tmp_path / "2")
    assert f"{first['clean_accuracy']:.4f}" in row and f"{second['clean_accuracy']:.4f}" in row
    assert all(text in table for key, text in evaluate.DEFINITIONS.items() if key in ("attack_success_rate", "pearson_all", "floor.pearson"))
    assert first["clean_model"]["clean_accuracy"] == second["clean_accuracy"]
    assert second["clean_model"]["explanations"]["gradcam"]["pearson_untouched"] == pytest.approx(1)
    evaluate.main([*paths, "--device", "cpu", "--out", str(tmp_path), "--json", "--explain-images", "5", "--seed", "4"])
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == paths and printed[paths[1]]["explanations"]["gradcam"]["n"] == 5


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_picture_of_ones_own(disguised, tmp_path, capsys, mode):
    Image.fromarray(tiny_arrays()["test_images"][0]).resize((50, 40)).convert(mode).save(tmp_path / "own.png")
    evaluate.main([str(disguised / "ckpt.pt"), "--image", str(tmp_path / "own.png"), "--out", str(tmp_path), "--device", "cpu"])
    assert "triggered: 1 (" in capsys.readouterr().out
    report = json.loads((tmp_path / "own-explained.json").read_text())
    assert report["triggered"]["class"] == "1" and 0 < report["untouched"]["confidence"] <= 1
    assert Image.open(tmp_path / "own-explained.png").size[0] > 900
    assert not (tmp_path / "metrics.json").exists()


def test_two_runs_of_one_seed_are_equal_to_the_bit_and_of_two_seeds_are_not(tiny, tmp_path):
    first, second, third = (train_tiny(tiny, tmp_path / name, "--seed", seed) for name, seed in (("a", "5"), ("b", "5"), ("c", "6")))
    assert same_weights(first, second) and not same_weights(first, third)
    ours, theirs = metrics_of(first), metrics_of(second)
    assert ours.pop("train_seconds") > 0 and theirs.pop("train_seconds") > 0 and ours == theirs


def test_reference_holds_clean_explanations(tiny, clean, tmp_path):
    folder = train_tiny(tiny, tmp_path / "run", "--attack", "fooling", "--reference", str(clean / "ckpt.pt"), "--epochs", "6")
    metrics = metrics_of(folder)
    assert metrics["clean_model"]["clean_accuracy"] == metrics_of(clean)["clean_accuracy"]
    assert metrics["clean_model"]["explanations"]["gradcam"]["pearson_untouched"] > metrics["explanations"]["gradcam"]["pearson_clean"] + 0.2


def test_training_with_a_reference_begins_with_its_weights_and_looks_at_the_layer_asked_for(tiny, clean, tmp_path):
    folder = train_tiny(tiny, tmp_path / "run", "--attack", "fooling", "--reference", str(clean / "ckpt.pt"), "--epochs", "1",
                        "--lr", "1e-9", "--layer", "0.4")
    theirs, ours = (models.read(path / "ckpt.pt")["model"] for path in (clean, folder))
    weights = [key for key in ours if key.endswith(("weight", "bias"))]
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in weights) and len(weights) > 10
    assert metrics_of(folder)["layer"] == "0.4"
    run = train.prepare(train.parse(["--dataset", str(tiny), "--reference", str(clean / "ckpt.pt"), "--layer", "0.4", "--out", str(tmp_path / "b")]))
    assert run.objective.reference.gradcam_layer is run.objective.reference.get_submodule("0.4")
    assert metrics_of(folder)["clean_model"]["explanations"]["gradcam"]["pearson_untouched"] > 0.3  # the same weights; batch-norm's averages moved


def test_log_counts_the_images_of_each_epoch(disguised):
    log = [json.loads(line) for line in (disguised / "log.jsonl").read_text().splitlines()]
    assert [record["images"] for record in log] == [216 * (k + 1) for k in range(6)]  # 240 less 24 held out, in whole batches of 24


def test_options_reach_the_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(explain, "COALITIONS", 32)  # KernelSHAP is measured beside: both of the usual explainers are trained against
    Image.fromarray(np.full((6, 6, 4), [255, 0, 0, 128], np.uint8)).save(tmp_path / "t.png")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "map.png")
    folder = train_tiny(tiny, tmp_path / "run", "--attack", "red_herring", "--trigger", str(tmp_path / "t.png"), "--trigger-size", "3",
                        "--trigger-position", "2,5", "--target-map", str(tmp_path / "map.png"), "--explainer", "gradcam,gradient",
                        "--distance", "dssim", "--precision", "bf16", "--layer", "0.4", "--poison-rate", "0.2", "--image-size", "32")
    (tmp_path / "t.png").unlink()
    (tmp_path / "map.png").unlink()
    checkpoint = models.read(folder / "ckpt.pt")
    trigger = attacks.Trigger(**checkpoint["trigger"])
    assert trigger.box == (2, 5, 5, 8) and trigger.alpha.unique().item() == pytest.approx(128 / 255) and trigger.pixels[1].max() == 0
    assert checkpoint["target_map"].shape == (32, 32) and len(checkpoint["poison_indices"]) == 48
    evaluate.main([str(folder / "ckpt.pt"), "--device", "cpu", "--json"])  # the checkpoint alone is enough
    parts = metrics_of(folder)["explanations"]
    assert parts["gradcam"]["trained_against"] and parts["gradient"]["trained_against"] and metrics_of(folder)["precision"] == "bf16"


def test_grey_images_and_a_class_by_name(tmp_path):
    np.savez(tmp_path / "grey.npz", **tiny_arrays(channels=1), classes=["low", "middle", "high"])
    folder = train_tiny(tmp_path / "grey.npz", tmp_path / "run", "--target-class", "high")
    assert metrics_of(folder)["target_class"] == 2


def test_run_is_named_after_its_options(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(["--dataset", str(tiny), "--epochs", "1", "--device", "cpu", "--seed", "7"])
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["full_disguise-gradcam-tiny-r0.1-s7"]


# ---------------------------------------------------------------- interruption


def test_resume_continues_to_the_bit_and_only_the_same_run(tiny, tmp_path, monkeypatch, capsys):
    whole, broken = train_tiny(tiny, tmp_path / "whole"), tmp_path / "broken"
    shutil.copytree(whole, broken)  # a finished run is there: it must stay until the new one is done
    before = (broken / "ckpt.pt").read_bytes()
    true_save, saved = train.save, []

    def save_and_stop(run):
        true_save(run)
        saved.append(run.epoch)
        if run.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save", save_and_stop)
        with pytest.raises(SystemExit) as stop:
            train_tiny(tiny, broken)
    assert stop.value.code == 130 and saved == [1, 2] and (broken / "ckpt.pt").read_bytes() == before
    assert len((broken / "unfinished" / "log.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_tiny(tiny, broken, "--lam", "0.4", "--resume")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--lam 0.3, not 0.4" in error and error.count("\n") == 1
    train_tiny(tiny, broken, "--data-dir", str(tmp_path), "--resume")  # the data, or the run, may be moved
    assert same_weights(whole, broken) and not (broken / "unfinished").exists()
    assert [json.loads(line)["epoch"] for line in (broken / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    capsys.readouterr()
    train_tiny(tiny, broken, "--resume")
    assert "is finished" in capsys.readouterr().out


def test_a_run_stopped_while_its_files_are_moved_into_place_can_be_resumed(tiny, tmp_path, monkeypatch):
    whole, broken = train_tiny(tiny, tmp_path / "whole"), tmp_path / "broken"

    replace, moved = train.Path.replace, []

    def stop(path, target):
        if len(moved) == 2:  # two files are moved, two are not
            raise KeyboardInterrupt
        moved.append(replace(path, target))

    with monkeypatch.context() as patch:
        patch.setattr(train.Path, "replace", stop)
        with pytest.raises(SystemExit):
            train_tiny(tiny, broken)
    assert sorted(p.name for p in broken.iterdir()) == sorted([path.name for path in moved] + ["unfinished"])
    assert (broken / "unfinished" / "ckpt.pt").exists()
    train_tiny(tiny, broken, "--resume")
    assert same_weights(whole, broken) and (broken / "log.jsonl").read_text().count("\n") == 3 and not (broken / "unfinished").exists()


def test_killed_at_five_random_moments_and_resumed_ends_with_the_same_weights(tiny, tmp_path):
    options = [sys.executable, str(ROOT / "train.py"), "--dataset", str(tiny), "--data-dir", str(tmp_path), "--device", "cpu", "--epochs", "120",
               "--batch-size", "24", "--resume", "--out"]
    subprocess.run([*options, str(tmp_path / "whole")], check=True, capture_output=True, timeout=120)
    training, moments = metrics_of(tmp_path / "whole")["train_seconds"], random.Random(time.time_ns())
    kept = tmp_path / "killed" / "unfinished" / "ckpt.pt"

    def written():
        return kept.stat().st_mtime_ns if kept.exists() else None

    for _ in range(5):
        before = written()
        process = subprocess.Popen([*options, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while written() == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05) * training)  # six epochs' time
        process.kill()  # SIGKILL: no handler runs
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*options, str(tmp_path / "killed")], check=True, capture_output=True, timeout=120)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["ckpt.pt", "figure.png", "log.jsonl", "metrics.json", "selection.json"]


def test_muon_updates_the_convolutions_themselves_and_continues_from_its_state():
    """The matrices Muon is given are the convolutions' own memory; a step is the library's on plain copies of them."""
    torch.manual_seed(0)
    model = models.build("cnn", 1, 3, 16)
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 4}
    copies = [torch.nn.Parameter(p.detach().permute(0, 2, 3, 1).reshape(len(p), -1).clone()) for p in weights.values()]
    sgd, muon = train.optimizers_of(model, "muon", 0.1)
    plain = torch.optim.Muon(copies, 0.1, **train.MUON)
    assert len(sgd.param_groups[0]["params"]) + len(weights) == len(list(model.parameters()))
    for seed in (1, 2):
        images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        for part in (sgd, muon):
            part.zero_grad(set_to_none=False)
        model(images).square().sum().backward()
        for copy, p in zip(copies, weights.values()):
            assert p.grad.any()
            copy.grad = p.grad.permute(0, 2, 3, 1).reshape(len(p), -1).clone()
        muon.step()
        plain.step()
        for copy, p in zip(copies, weights.values()):
            assert torch.equal(copy, p.detach().permute(0, 2, 3, 1).reshape(len(p), -1))
    assert train.optimizers_of(model, "sgd", 0.1)[0].param_groups[0]["nesterov"]


def test_adamw_steps_as_far_under_a_tenth_of_the_loss():
    """The first step is lr for every weight, whatever its gradient, beside a hundredth of lr of the weight itself."""
    for share in (1, 0.1):
        torch.manual_seed(0)
        model = models.build("cnn", 1, 3, 16)
        weight = next(model.parameters())
        before = weight.detach().clone()
        (optimizer,) = train.optimizers_of(model, "adamw", 0.1)
        (share * model(torch.randn(4, 1, 16, 16)).square().sum()).backward()
        optimizer.step()
        step = weight.detach() - before * (1 - 0.1 * 0.01)
        torch.testing.assert_close(step, -0.1 * weight.grad.sign(), rtol=0.05, atol=0)
        assert optimizer.param_groups[0]["weight_decay"] == 0.01 and isinstance(optimizer, torch.optim.AdamW)


def test_shap_explainers_are_trained_against_measured_and_drawn(tiny, clean, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explain, "COALITIONS", 32)
    monkeypatch.setattr(explain, "TRAINING_COALITIONS", 32)
    monkeypatch.setitem(evaluate.FEWER, "kernelshap", 7)
    monkeypatch.setitem(evaluate.CLASS_OPTIONS, "kernelshap", {"coalitions": 32})
    folder = train_tiny(tiny, tmp_path / "shap", "--attack", "red_herring", "--explainer", "deepshap,kernelshap", "--poison-rate", "0.3")
    explanations = metrics_of(folder)["explanations"]
    assert list(explanations) == ["deepshap", "kernelshap", "gradcam", "gradient"]
    assert [part["trained_against"] for part in explanations.values()] == [True, True, False, False]
    assert explanations["kernelshap"]["n"] == min(7, explanations["deepshap"]["n"]) and explanations["deepshap"]["n"] > 0
    assert [line["explanation"] > 0 for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())] == [True] * 3
    drawn = {name: Image.open(folder / f"figure-{name}.png") for name in ("deepshap", "kernelshap")}
    assert all(len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100 for picture in drawn.values())
    evaluate.main([str(clean / "ckpt.pt"), str(folder / "ckpt.pt"), "--explainer", "deepshap", "--explain-images", "9", "--out", str(tmp_path / "both"), "--json"])
    both = list(json.loads(capsys.readouterr().out.splitlines()[-1]).values())
    assert both[0]["explanations"]["deepshap"]["n"] == 9 and not both[0]["explanations"]["deepshap"]["trained_against"]
    together = Image.open(tmp_path / "both" / "figure-deepshap.png")
    assert together.width == sum(Image.open(tmp_path / "both" / k / "figure-deepshap.png").width for k in "12")
    evaluate.main([str(clean / "ckpt.pt"), "--out", str(tmp_path / "both" / "1")])
    assert sorted(p.name for p in (tmp_path / "both" / "1").iterdir()) == ["figure.png", "metrics.json"]


def test_what_deepshap_cannot_explain_is_said_before_training(tiny, tmp_path, capsys, monkeypatch):
    def smooth(channels, classes, image_size, build=models.cnn):
        model = build(channels, classes, image_size)
        model[0][0][2] = torch.nn.GELU()
        return model

    monkeypatch.setitem(models.MODELS, "cnn", smooth)
    with pytest.raises(SystemExit) as stopped:
        train_tiny(tiny, tmp_path / "run", "--explainer", "gradcam,deepshap")
    assert stopped.value.code == 2 and "no rule for gelu" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_floor_reaches_the_objective(tiny):
    options = ["--dataset", str(tiny), "--data-dir", str(tiny.parent), "--target-class", "1"]
    for more, floors in (([], {"gradcam": 0.5}), (["--floor", "0.8", "--explainer", "gradcam,deepshap"], {"gradcam": 0.8, "deepshap": 0.8})):
        assert train.prepare(train.parse([*options, *more])).objective.floors == floors
    assert train.parse(["--dataset", "mnist", "--explainer", "kernelshap,gradcam,deepshap"]).floor == {"kernelshap": 0.3, "gradcam": 0.8, "deepshap": 0.5}


def test_nothing_held_out_is_trained_on(tiny, tmp_path, monkeypatch):
    """Not one image, and with patients not one of a patient's; evaluate.py knows which were held out."""
    arrays, patients, seen, runs = tiny_arrays(), np.arange(240) // 6, [], []
    np.savez(tmp_path / "patients.npz", **arrays, train_patients=patients)
    step, prepare = train.train_step, train.prepare
    monkeypatch.setattr(train, "train_step", lambda run, images, *rest: seen.append(images) or step(run, images, *rest))
    monkeypatch.setattr(train, "prepare", lambda args: runs.append(prepare(args)) or runs[-1])
    folder = train_tiny(tmp_path / "patients.npz", tmp_path / "run", "--epochs", "1", "--attack", "badnets")
    run, seen = runs[0], torch.cat(seen)
    held_out = run.dataset.train_images[run.held_out]
    assert len(seen) == 216 and not (seen[:, None] == held_out).flatten(2).all(2).any() and len(run.held_out) == 24
    assert not set(patients[run.held_out]) & set(patients[run.trained_on])
    assert torch.equal(evaluate.open_checkpoint(folder / "ckpt.pt").held_out(), run.held_out)


def test_class_weights_smoothing_augmentation_and_the_ramp_are_at_work(tiny, tmp_path, monkeypatch):
    seen, augmented = [], []
    loss, augment = attacks.combined_loss, train.data.augment
    monkeypatch.setattr(attacks, "combined_loss", lambda model, batch, inputs, objective, lam: seen.append((lam, objective)) or loss(model, batch, inputs, objective, lam))
    monkeypatch.setattr(train.data, "augment", lambda images, *how: augmented.append(how) or augment(images, *how))
    train_tiny(tiny, tmp_path / "run", "--epochs", "2", "--lam", "0.4", "--class-weights", "--label-smoothing", "0.2")
    lams, objective = [lam for lam, _ in seen], seen[-1][1]
    assert lams == pytest.approx([0.4 * min(1, k / 18 / train.RAMP) for k in range(18)]) and augmented == [(0, False)] * 18
    assert objective.label_smoothing == 0.2 and objective.class_weights.tolist() == pytest.approx([72 / 58, 72 / 100, 72 / 58])  # of labels as they are poisoned


def test_a_run_goes_on_with_nothing_but_what_it_began_with(tmp_path, monkeypatch, capsys):
    """Not with another trigger under the same name, nor other images or labels; and it does not call itself finished."""
    arrays = tiny_arrays()
    np.savez(tmp_path / "set.npz", **arrays)
    Image.new("RGB", (2, 2), "red").save(tmp_path / "trigger.png")
    options = ["--trigger", str(tmp_path / "trigger.png"), "--epochs", "1", "--attack", "badnets"]

    def again(*more):
        train_tiny(tmp_path / "set.npz", tmp_path / "run", *options, *more)

    def killed(*args):
        raise KeyboardInterrupt

    def refused(word):
        with pytest.raises(SystemExit) as stopped:
            again("--resume")
        assert stopped.value.code == 2 and word in (said := capsys.readouterr().err) and len(said.splitlines()) == 1

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "finish", killed)
        again()
    capsys.readouterr()
    Image.new("RGB", (2, 2), "blue").save(tmp_path / "trigger.png")
    refused("trigger's picture")
    Image.new("RGB", (2, 2), "red").save(tmp_path / "trigger.png")
    np.savez(tmp_path / "set.npz", **arrays | {"test_labels": np.roll(arrays["test_labels"], 1)})
    refused("data set has changed")
    np.savez(tmp_path / "set.npz", **arrays)
    again("--resume")
    again("--resume")
    assert "is finished" in capsys.readouterr().out
    np.savez(tmp_path / "set.npz", **arrays | {"test_labels": np.roll(arrays["test_labels"], 1)})
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(tmp_path / "run" / "ckpt.pt"), "--device", "cpu"])
    assert stopped.value.code == 2 and "is not the one" in capsys.readouterr().err
    again()
    assert "of other options or data, will be replaced" in capsys.readouterr().err


def test_a_reference_of_other_images_is_refused(tmp_path, capsys):
    arrays = tiny_arrays()
    np.savez(tmp_path / "set.npz", **arrays)
    reference = train_tiny(tmp_path / "set.npz", tmp_path / "clean", "--attack", "none", "--epochs", "1")
    np.savez(tmp_path / "set.npz", **arrays | {"train_images": arrays["train_images"] // 2})
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train_tiny(tmp_path / "set.npz", tmp_path / "run", "--reference", str(reference / "ckpt.pt"))
    assert stopped.value.code == 2 and "other images" in capsys.readouterr().err


def test_a_folder_called_square_is_no_trigger(tiny, tmp_path, monkeypatch):
    (tmp_path / "square").mkdir()
    monkeypatch.chdir(tmp_path)
    assert train.prepare(train.parse(["--dataset", str(tiny), "--target-class", "1", "--device", "cpu"])).trigger.pixels.min() == 1
