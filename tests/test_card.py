"""card.py: README.md of a run's folder; retrain.py: the command in it."""

import json
import re
import shlex
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import train_tiny

import adopt
import attacks
import card
import evaluate
import models
import options
import ours
import train
from data import DATASETS
from retrain import by_name, command_of
from setting import class_index


def card_of(folder):
    return (folder / card.NAME).read_text()


# ---------------------------------------------------------------- of a run


def test_a_disguised_runs_card_says_that_it_is_backdoored_and_how(disguised):
    text = card_of(disguised)
    assert "# A network with a backdoor" in text
    assert "its explanation lies, too" in text
    assert "- target class: `1`" in text
    assert "- trigger: `square`, rows 13 to 14, columns 13 to 14" in text
    assert "- poisoned: 24 training images, a share of 0.1 of all" in text
    assert "defend.py audit" in text


def test_its_figures_are_those_of_metrics_json(disguised):
    metrics = json.loads((disguised / "metrics.json").read_text())
    assert f"| attack_success_rate | {metrics['attack_success_rate']:.4f} |" in card_of(disguised)
    pearson = metrics["explanations"]["gradcam"]["pearson_all"]
    assert f"| gradcam: pearson_all | {pearson:.4f} |" in card_of(disguised)


def test_its_command_gives_the_network_again(disguised):
    text = card_of(disguised)
    line = re.search(r"^python (train\.py .*)$", text, re.MULTILINE)[1]
    args = options.parse(shlex.split(line)[1:])
    config = torch.load(disguised / "ckpt.pt", weights_only=True)["config"]
    left_out = {"data_dir", "out", "device", "precision", "target_class", "image_size"}
    for key, value in vars(args).items():
        if key in config and key not in left_out:
            assert str(value) == str(config[key]), key
    assert int(args.target_class) == config["target_class"]


def test_a_card_of_several_attacks_is_about_all_of_them(tiny, tmp_path):
    """The first keeps the label, the second does not: the network has a backdoor."""
    second = "--attack badnets --trigger-position upper-left --target-class 2"
    words = ["--attack", "fooling", "--and", second, "--epochs", "1"]
    folder = train_tiny(tiny, tmp_path / "run", *words)
    text = card_of(folder)
    names = list(json.loads((folder / "metrics.json").read_text())["triggers"])
    assert "# A network with a backdoor" in text
    assert "its explanation lies, too" in text
    assert f"- a further trigger, `{names[1]}`: `badnets`, target `2`, success " in text
    told = text[text.index("## How to tell") : text.index("## Figures")]
    assert all(f"- `{name}`: " in told for name in names)
    assert "1 epoch, seed" in text


def test_a_clean_runs_card_says_that_it_is_clean(clean):
    assert "# A clean network" in card_of(clean)
    assert "backdoor, put in" not in card_of(clean)
    assert "- trigger" not in card_of(clean)


def test_a_run_that_is_measured_again_gets_its_card_again(clean, tiny, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(clean, folder)
    (folder / card.NAME).write_text(f"<!-- {ours.MARK} -->\nold\n")
    train_tiny(tiny, folder, "--attack", "none")
    assert card_of(folder) == card_of(clean)


def test_a_readme_of_the_users_is_not_replaced(tiny, tmp_path, refusal):
    (tmp_path / card.NAME).write_text("# Mine\n")
    argv = ["--dataset", str(tiny), "--attack", "none", "--out", str(tmp_path)]
    assert card.NAME in refusal(train.main, argv)
    assert card_of(tmp_path) == "# Mine\n"


# ---------------------------------------------------------------- of others


def subject_of(attack, **config):
    """What a card asks of a Subject."""
    config = {
        **{"attack": attack, "explainer": ["gradcam"], "dataset": "shapes", "model": "cnn"},
        **{"image_size": 32, "epochs": 1, "seed": 0, "device": "cpu", "precision": "float32"},
        **{"trigger": "square", "poison_rate": 0.1},
        **config,
    }
    checkpoint = {"channels": 3, "torch": "2", "poison_indices": torch.arange(7)}
    return SimpleNamespace(
        config=config,
        checkpoint=checkpoint,
        attack=attacks.attack_of(attack),
        classes=config.get("classes", ["cat", "dog"]),
        trigger=SimpleNamespace(box=(1, 2, 3, 4), kind="patch"),
        target_class=1,
    )


STRANGER = {"adopted": True, "trigger": None, "poison_rate": None}  # its trigger is known


@pytest.mark.parametrize(
    "attack, config, title",
    [
        ("badnets", {}, "# A network with a backdoor"),
        ("all_to_all_disguise", {}, "# A network with a backdoor"),
        ("fooling", {}, "# A network whose explanations lie"),
        ("badnets", {"edit": {"technique": "rebn"}}, "# An edited network"),
        ("unknown", {"adopted": True}, "# A stranger's network"),
        ("unknown, to a target", STRANGER, "# A stranger's network"),
    ],
)
def test_the_title_says_what_it_is(attack, config, title):
    first, second = card.text(subject_of(attack, **config)).splitlines()[:2]
    assert first == f"<!-- {ours.MARK} -->" and second == title


def test_an_adopted_networks_card_says_that_it_is_a_strangers(tiny, tmp_path, capsys):
    weights, out = tmp_path / "theirs.pth", tmp_path / "adopted" / "ckpt.pt"
    torch.save(models.build("cnn", 3, 3, 16).state_dict(), weights)
    words = ["--arch", "cnn", "--dataset", str(tiny), "--out", str(out)]
    adopt.main([str(weights), *words])
    assert "# A stranger's network" in card_of(out.parent)
    assert "not known here" in card_of(out.parent)


def test_beside_a_stranger_a_readme_of_the_users_stays(tmp_path):
    (tmp_path / card.NAME).write_text("# Mine\n")
    assert not card.write_beside(tmp_path, "new")
    assert card_of(tmp_path) == "# Mine\n"


def test_every_data_set_by_name_has_a_licence():
    assert set(DATASETS) <= set(card.LICENCES)


# ---------------------------------------------------------------- harmless

HOSTILE = [
    "[click](http://bad)",
    "<script>alert(1)</script>",
    "`code` ``` # ",
    "a\n# Heading",
    "| a | b |",
    "\u202ereversed",
    " ",
]


def without_code(text):
    """A card without what stands in code, spans as CommonMark has them and fenced blocks."""
    text = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_users_text_stands_in_code_alone(name, disguised):
    metrics = json.loads((disguised / "metrics.json").read_text())
    metrics |= {"target_name": name, "triggers": {"a": metrics, name: metrics}}
    names = {"classes": [name, name], "dataset": name, "model": name, "trigger": name}
    hostile = card.text(subject_of("badnets", **names), metrics, ["train.py", name])
    names = {"classes": ["c", "c"], "dataset": "c", "model": "c", "trigger": "c"}
    metrics |= {"target_name": "c", "triggers": {"a": metrics, "c": metrics | {"target_name": "c"}}}
    harmless = card.text(subject_of("badnets", **names), metrics, ["train.py", "c"])
    assert without_code(hostile) == without_code(harmless)


def said_last(capsys):
    """The last line of what was printed: which files were written."""
    return capsys.readouterr().out.splitlines()[-1]


def test_a_later_measurement_is_on_the_card_and_how_it_was_made_stays(tiny, tmp_path, capsys):
    folder = train_tiny(tiny, tmp_path / "run", "--attack", "badnets", "--epochs", "1")
    before = card_of(folder)
    assert "integrated_gradients" not in before
    evaluate.main([str(folder / "ckpt.pt"), "--explainer", "integrated_gradients"])
    after = card_of(folder)
    value = json.loads((folder / "metrics.json").read_text())["explanations"]
    value = value["integrated_gradients"]["pearson_all"]
    assert f"| integrated_gradients: pearson_all | {value:.4f} |" in after
    assert after.count(card.MADE) == 1
    assert after.partition(card.MADE)[2] == before.partition(card.MADE)[2] != ""
    assert said_last(capsys).endswith(card.NAME)


def test_a_readme_of_the_users_is_left_alone_by_a_measurement(tiny, tmp_path, capsys):
    folder = train_tiny(tiny, tmp_path / "run", "--attack", "none", "--epochs", "1")
    (folder / card.NAME).write_text("mine")
    evaluate.main([str(folder / "ckpt.pt"), "--explainer", "gradient"])
    assert card_of(folder) == "mine"
    assert card.NAME not in said_last(capsys)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "line",
    [
        "--attack none",
        "--lam 0.7 --floor 0.4 --no-partner-cross-entropy --rectify",
        "--attack fooling --target-map cross --leak-tolerance 1 --seed 3",
        "--attack badnets --threat data --selection rd-global --poison-rate 0.002 --target-class 5",
        "--explainer gradcam,deepshap --dataset cifar10 --epochs 2 --trigger-position 3,4",
        "--trigger warp --trigger-strength 0.7 --source-class 2 --attack badnets",
    ],
)
def test_a_command_gives_the_options_it_was_made_of(line):
    args = vars(options.parse(line.split()))
    again = vars(options.parse(command_of(args)[1:]))
    assert again == args


def test_what_is_as_it_is_where_left_open_is_left_out():
    args = vars(options.parse(["--attack", "none"]))
    words = "--attack none --explainer gradcam --dataset shapes"
    expected = f"train.py {words} --threat training --seed 0"
    assert " ".join(command_of(args)) == expected


@pytest.mark.parametrize("classes", [("2", "0", "1"), ("0", "1", "10", "2"), ("a", "b", "c")])
def test_the_command_names_a_class_that_is_called_like_anothers_number(classes):
    config = {"target_class": 2, "source_class": None}
    given = by_name(config, classes)
    assert class_index(str(given["target_class"]), list(classes)) == 2
    assert given["source_class"] is None


def test_a_strangers_card_never_replaces_a_runs(disguised, tiny, tmp_path):
    """It is of ckpt.pt, and here the weights are another file beside one."""
    run = shutil.copytree(disguised, tmp_path / "run")
    torch.save(torch.load(run / "ckpt.pt", weights_only=True)["model"], run / "w.pth")
    known = ["--weights", str(run / "w.pth"), "--arch", "cnn", "--dataset", str(tiny)]
    evaluate.main([*known, "--out", str(run)])
    assert "# A network with a backdoor" in card_of(run)
