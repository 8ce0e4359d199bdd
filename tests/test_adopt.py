"""A stranger's network: asked as its own checkpoint would be, and no more is said than is known."""

import json

import numpy as np
import pytest
import torch
import torchvision
from conftest import metrics_of
from PIL import Image
from placing import DEVICE
from test_strangers import NET

import adopt
import checkpoints
import defend
import evaluate
import strangers

CPU = ("--device", DEVICE)


@pytest.fixture(scope="module")
def backdoored(run_under, tmp_path_factory):
    """(the folder of a badnets run, its weights as a bare state_dict in a file)."""
    folder = run_under("badnets")
    weights = tmp_path_factory.mktemp("theirs") / "theirs.pth"
    torch.save(torch.load(folder / "ckpt.pt", weights_only=True)["model"], weights)
    return folder, weights


def argv_of(weights, tiny, out, *more):
    """evaluate.py's or defend.py's options for a stranger's network."""
    data = ("--dataset", str(tiny), "--data-dir", str(tiny.parent))
    return ["--weights", str(weights), "--arch", "cnn", *data, *CPU, "--out", str(out), *more]


def measured(weights, tiny, out, *more):
    evaluate.main(argv_of(weights, tiny, out, *more))
    return metrics_of(out)


# ---------------------------------------------------------------- what is known is measured


def test_with_all_that_is_known_the_figures_are_the_checkpoints(backdoored, tiny, tmp_path):
    folder, weights = backdoored
    known = ("--trigger", "square", "--target-class", "1")
    theirs, ours = measured(weights, tiny, tmp_path, *known), metrics_of(folder)
    for key in ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "target_name"):
        assert theirs[key] == ours[key], key
    for name in ("gradcam", "gradient"):
        for key in ("pearson_all", "trigger_mass", "trigger_area", "zero_maps"):
            one, other = (part["explanations"][name][key] for part in (theirs, ours))
            assert one == pytest.approx(other, abs=1e-6), (name, key)
    assert theirs["attack"] == "unknown, to a target"


def test_without_a_trigger_what_needs_one_is_null(backdoored, tiny, tmp_path):
    folder, weights = backdoored
    theirs = measured(weights, tiny, tmp_path)
    ours = metrics_of(folder)
    assert theirs["clean_accuracy"] == ours["clean_accuracy"]
    assert theirs["attack_success_rate"] is theirs["triggered_accuracy"] is None
    gradcam = theirs["explanations"]["gradcam"]
    assert gradcam["pearson_all"] is gradcam["trigger_mass"] is None
    assert gradcam["floor"]["pearson"] is not None
    assert -1 <= theirs["agreement"]["gradcam, gradient"] <= 1
    assert theirs["target_class"] is theirs["target_name"] is None


def test_without_a_trigger_the_seed_draws_what_is_explained(backdoored, tiny, tmp_path):
    few = ("--explain-images", "5")
    zero, again, one = (
        measured(backdoored[1], tiny, tmp_path / name, *few, "--seed", seed)["explanations"]
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    assert zero["gradcam"]["n"] == 5
    assert zero == again
    assert zero["gradcam"]["floor"] != one["gradcam"]["floor"]


def test_a_trigger_without_a_target_keeps_the_label(backdoored, tiny, tmp_path):
    theirs = measured(backdoored[1], tiny, tmp_path, "--trigger", "square")
    assert theirs["attack"] == "unknown, label kept"
    assert theirs["attack_success_rate"] is None
    assert theirs["triggered_accuracy"] < 0.6 < theirs["clean_accuracy"]
    assert theirs["explanations"]["gradcam"]["pearson_all"] is not None


def test_a_picture_is_not_shown_for_a_target_that_is_not_known(backdoored, tiny, tmp_path, capsys):
    picture = tmp_path / "one.png"
    Image.new("RGB", (32, 32)).save(picture)
    with pytest.raises(SystemExit) as stop:
        measured(backdoored[1], tiny, tmp_path, "--trigger", "square", "--image", str(picture))
    assert stop.value.code == 2
    assert "give --target-class" in capsys.readouterr().err


def test_what_was_found_is_said_without_a_trigger(backdoored, tiny, tmp_path, capsys):
    measured(backdoored[1], tiny, tmp_path)
    printed = capsys.readouterr()
    assert "No trigger is known" in printed.out
    assert "gradcam and gradient correlate" in " ".join(printed.out.split())
    assert "in its training part" in printed.err


def test_disagreement_takes_a_trigger(backdoored, tiny, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        defend.main(["disagreement", *argv_of(backdoored[1], tiny, tmp_path)])
    assert "no trigger is known to try it with" in capsys.readouterr().err


def test_checkpoints_without_a_trigger_have_a_table_and_no_picture(
    backdoored, tiny, tmp_path, capsys
):
    told = ["--arch", "cnn", "--dataset", str(tiny), "--data-dir", str(tiny.parent)]
    checkpoints_ = [str(tmp_path / name / "ckpt.pt") for name in ("a", "b")]
    for path in checkpoints_:
        adopt.main([str(backdoored[1]), *told, "--out", path])
    evaluate.main([*checkpoints_, *CPU, "--explain-images", "5", "--out", str(tmp_path / "out")])
    assert "no trigger is known: there is no common picture" in capsys.readouterr().err
    assert not (tmp_path / "out" / "comparison.png").exists()
    assert (tmp_path / "out" / "comparison.json").exists()


# ---------------------------------------------------------------- how it is to be asked


def test_wrong_statistics_are_noticed(backdoored, tiny, tmp_path, capsys):
    measured(backdoored[1], tiny, tmp_path, "--mean", "-40", "--std", "0.01")
    assert "hardly above a constant answer's" in " ".join(capsys.readouterr().err.split())


def test_statistics_may_be_named(backdoored, tiny, tmp_path):
    measured(backdoored[1], tiny, tmp_path / "a", "--mean", "imagenet")
    numbers = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    measured(backdoored[1], tiny, tmp_path / "b", *numbers)
    assert (tmp_path / "a/figure.png").read_bytes() == (tmp_path / "b/figure.png").read_bytes()


def test_classes_are_named_by_a_file(backdoored, tiny, tmp_path):
    (tmp_path / "names.txt").write_text("0\n1\nzwei\n")
    with pytest.raises(SystemExit):  # the data set's classes are not among them
        evaluate.main(argv_of(backdoored[1], tiny, tmp_path, "--classes", f"{tmp_path}/names.txt"))
    (tmp_path / "names.txt").write_text("2\n1\n0\n")  # the network's order
    theirs = measured(backdoored[1], tiny, tmp_path, "--classes", f"{tmp_path}/names.txt")
    assert theirs["classes"] == ["2", "1", "0"]
    assert theirs["clean_accuracy"] < 0.6


def test_unlabelled_pictures_have_maps_and_no_accuracy(backdoored, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "loose").mkdir()
    for k in range(6):
        pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "loose" / f"{k}.png")
    argv = ["--weights", str(backdoored[1]), "--arch", "cnn", "--dataset", f"{tmp_path}/loose"]
    argv += ["--image-size", "16", "--mean", "none", *CPU, "--out", str(tmp_path / "out")]
    evaluate.main(argv)
    theirs = metrics_of(tmp_path / "out")
    assert theirs["n_test"] == 6
    assert theirs["clean_accuracy"] is theirs["majority_rate"] is None
    assert theirs["explanations"]["gradcam"]["n"] == 6


def test_grey_images_are_given_to_a_network_of_colours(backdoored, tiny, tmp_path, capsys):
    arrays = dict(np.load(tiny))
    for split in ("train", "test"):
        arrays[f"{split}_images"] = arrays[f"{split}_images"][..., 0]
    np.savez(tmp_path / "grey.npz", **arrays)
    measured(backdoored[1], tmp_path / "grey.npz", tmp_path / "out")
    assert "grey images are given in all three channels" in capsys.readouterr().err


# ---------------------------------------------------------------- refused in one line

MISTAKES = {
    "no architecture": (("--weights", "{w}", "--dataset", "{d}"), "takes --arch"),
    "no data": (("--weights", "{w}", "--arch", "cnn"), "takes --dataset"),
    "weights and a checkpoint": (("{c}", "--weights", "{w}"), "give a checkpoint, or"),
    "neither": ((), "give a checkpoint, or"),
    "an option of strangers": (("{c}", "--mean", "imagenet"), "--mean is for --weights"),
    "no such file": (("--weights", "no.pth", "--arch", "cnn", "--dataset", "{d}"), "no such file"),
    "another architecture": (
        ("--weights", "{w}", "--arch", "resnet18", "--dataset", "{d}"),
        "do not fit resnet18",
    ),
    "statistics": (
        ("--weights", "{w}", "--arch", "cnn", "--dataset", "{d}", "--mean", "1,2"),
        "--mean 1,2: one of",
    ),
    "a deviation of zero": (
        *(("--weights", "{w}", "--arch", "cnn", "--dataset", "{d}", "--mean", "0", "--std", "0"),),
        "3 numbers above 0",
    ),
    "a layer that is none": (
        ("--weights", "{w}", "--arch", "cnn", "--dataset", "{d}", "--layer", "conv9"),
        "no layer 'conv9'",
    ),
    "a target that is none": (
        ("--weights", "{w}", "--arch", "cnn", "--dataset", "{d}", "--target-class", "9"),
        "target class '9'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, backdoored, tiny, tmp_path, capsys):
    words, said = MISTAKES[mistake]
    folder, weights = backdoored
    places = {"w": weights, "d": tiny, "c": folder / "ckpt.pt"}
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*(word.format(**places) for word in words), *CPU, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- an adopted checkpoint


def adopted_checkpoint(weights, tiny, out, *more):
    data = ("--dataset", str(tiny), "--data-dir", str(tiny.parent))
    adopt.main([str(weights), "--arch", "cnn", *data, "--out", str(out), *more])
    return out


def test_an_adopted_checkpoint_is_read_by_every_script(backdoored, tiny, tmp_path):
    known = ("--trigger", "square", "--target-class", "1")
    path = adopted_checkpoint(backdoored[1], tiny, tmp_path / "a" / "ckpt.pt", *known)
    evaluate.main([str(path), *CPU, "--out", str(tmp_path / "a")])
    direct = measured(backdoored[1], tiny, tmp_path / "b", *known)
    assert metrics_of(tmp_path / "a")["explanations"] == direct["explanations"]
    assert checkpoints.read(path)["config"]["adopted"] is True
    defend.main(["strip", str(path), *CPU, "--test-images", "8", "--out", str(tmp_path / "c")])
    assert json.loads((tmp_path / "c" / "verdict.json").read_text())["auroc"] is not None


def test_without_a_trigger_it_is_read_too(backdoored, tiny, tmp_path):
    path = adopted_checkpoint(backdoored[1], tiny, tmp_path / "ckpt.pt")
    evaluate.main([str(path), *CPU])
    assert metrics_of(tmp_path)["attack"] == "unknown"


def test_what_is_there_is_not_overwritten(backdoored, tiny, tmp_path, refusal):
    (tmp_path / "ckpt.pt").write_text("mine")
    data = ("--dataset", str(tiny), "--out", str(tmp_path / "ckpt.pt"))
    assert "is there already" in refusal(adopt.main, [str(backdoored[1]), "--arch", "cnn", *data])


@pytest.fixture
def from_file(tiny, tmp_path):
    """(an adopted checkpoint of a network in a Python file, that file)."""
    net = tmp_path / "net.py"
    net.write_text(NET.replace("Conv2d(3, 4, 3)", "Conv2d(3, 4, 3, padding=1)"))
    torch.manual_seed(0)
    torch.save(strangers.from_file(net, "build", 3).state_dict(), tmp_path / "w.pth")
    data = ("--dataset", str(tiny), "--data-dir", str(tiny.parent))
    out = tmp_path / "ckpt.pt"
    adopt.main([str(tmp_path / "w.pth"), "--arch", f"{net}:build", *data, "--out", str(out)])
    return out, net


def test_no_file_is_run_that_a_checkpoint_names(from_file, tmp_path, refusal):
    checkpoint, net = from_file
    net.write_text(f"open({str(tmp_path / 'sings')!r}, 'w')\n" + net.read_text())
    line = refusal(evaluate.main, [str(checkpoint), *CPU])
    assert "is run only where you name it: --arch" in line
    assert not (tmp_path / "sings").exists()


def test_named_again_it_is(from_file, tmp_path):
    checkpoint, net = from_file
    evaluate.main([str(checkpoint), "--arch", f"{net}:build", *CPU, "--out", str(tmp_path / "e")])
    assert metrics_of(tmp_path / "e")["model"] == f"{net}:build"


# ---------------------------------------------------------------- audited


def test_a_defence_takes_all_training_images(backdoored, tiny, tmp_path):
    quick = ["--rounds", "4", "--round-images", "16"]
    defend.main(["neural_cleanse", *argv_of(backdoored[1], tiny, tmp_path), *quick])
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["clean_images"] == 240
    assert verdict["network"]["arch"] == "cnn"
    assert verdict["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize("method", ["rebn", "cfn"])
def test_a_repair_is_of_the_adopted_network(method, backdoored, tiny, tmp_path):
    known = ("--trigger", "square", "--target-class", "1")
    defend.main([method, *argv_of(backdoored[1], tiny, tmp_path, *known)])
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["before"]["attack_success_rate"] > 0.9
    evaluate.main([str(tmp_path / "ckpt.pt"), *CPU, "--out", str(tmp_path / "again")])
    again = metrics_of(tmp_path / "again")
    assert again["clean_accuracy"] == verdict["after"]["clean_accuracy"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_torchvisions_networks_are_adopted(name, tiny, tmp_path, capsys):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    size = "224" if name == "vit_b_32" else "128"
    argv = ["--weights", str(tmp_path / "w.pth"), "--arch", f"torchvision:{name}"]
    argv += ["--dataset", str(tiny), "--image-size", size, "--explain-images", "2", *CPU]
    few = dict(np.load(tiny))
    few = {key: value[:6] for key, value in few.items()}
    np.savez(tmp_path / "few.npz", **few)
    argv[argv.index(str(tiny))] = str(tmp_path / "few.npz")
    evaluate.main([*argv, "--out", str(tmp_path / "out")])
    explained = metrics_of(tmp_path / "out")["explanations"]
    assert "gradient" in explained
    assert ("gradcam" in explained) == (name != "vit_b_32")
    said = " ".join(capsys.readouterr().err.split())
    assert ("Grad-CAM cannot explain this network" in said) == (name == "vit_b_32")
