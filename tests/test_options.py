"""train.py's command line: what is left open is filled in, and --help shows each default once."""

import argparse
import re

import pytest

import models
import options
import setting
import train
from attacks import ATTACKS
from cli import UserError
from losses import DEFAULT_FLOOR, Objective
from options import DEFAULTS, DataDefaults
from selection import STRATEGIES
from studies import jobs, sweep

# ---------------------------------------------------------------- what is left open


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_open_is_the_data_sets(name):
    args = options.parse(["--dataset", name])
    for key in ("model", "epochs", "optimizer", "lr", "batch_size", "label_smoothing"):
        assert getattr(args, key) == getattr(DEFAULTS[name], key)


@pytest.mark.parametrize("key", ["image_size", "target_class"])
def test_radiographs_have_a_size_and_a_target_of_their_own(key):
    args = options.parse(["--dataset", "chestxray14"])
    assert getattr(args, key) == getattr(DEFAULTS["chestxray14"], key)


@pytest.mark.parametrize("name", ["mine.npz", "folder"])
def test_a_data_set_of_ones_own_has_the_common_defaults(name):
    args, common = options.parse(["--dataset", name]), DataDefaults()
    assert (args.model, args.epochs, args.lr) == (common.model, common.epochs, common.lr)


def test_what_is_given_is_not_filled_in():
    args = options.parse(["--dataset", "cifar10", "--epochs", "2", "--label-smoothing", "0"])
    assert (args.epochs, args.label_smoothing) == (2, 0.0)


def test_the_floor_is_the_data_sets_for_each_explainer():
    args = options.parse(["--dataset", "mnist", "--explainer", "kernelshap,gradcam,deepshap"])
    assert args.floor == {"kernelshap": 0.3, "gradcam": 0.8, "deepshap": DEFAULT_FLOOR}


def test_a_floor_that_is_given_is_for_all_explainers():
    args = options.parse(
        ["--dataset", "mnist", "--floor", "0.2", "--explainer", "gradcam,deepshap"]
    )
    assert args.floor == {"gradcam": 0.2, "deepshap": 0.2}


def test_poisons_are_chosen_by_the_runs_seed():
    assert options.parse(["--seed", "7"]).selection_seed == 7


def test_poisons_can_be_chosen_by_a_seed_of_their_own():
    assert options.parse(["--seed", "7", "--selection-seed", "4"]).selection_seed == 4


def test_a_clean_run_has_no_poison_rate():
    assert options.parse(["--attack", "none"]).poison_rate == 0
    assert options.parse(["--attack", "none", "--poison-rate", "0.5"]).poison_rate == 0


def test_explainers_are_a_list_each_once():
    args = options.parse(["--explainer", "gradient, gradcam,gradient"])
    assert args.explainer == ["gradient", "gradcam"]


# ---------------------------------------------------------------- what does not go together


def test_two_kinds_of_first_weights_are_refused():
    with pytest.raises(UserError, match="--pretrained or --reference"):
        options.parse(["--pretrained", "--reference", "clean.pt"])


@pytest.mark.parametrize("attack", [name for name in ATTACKS if not ATTACKS[name].changes_label])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "random"])
def test_selection_is_refused_where_no_label_is_changed(attack, strategy):
    with pytest.raises(UserError, match=f"--selection {strategy} .* not with --attack {attack}"):
        options.parse(["--attack", attack, "--selection", strategy])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_can_be_asked_for(strategy):
    assert options.parse(["--selection", strategy]).selection == strategy


MANY = "9" * 5000  # digits: more than Python reads


@pytest.mark.parametrize(
    "read",
    [
        lambda: setting.class_index(MANY, ["0", "1"]),
        lambda: setting.target_map_picture(f"random:{MANY}", "crop"),
        lambda: sweep.seeds_of(f"0-{MANY}"),
        lambda: sweep.seeds_of("0-1000"),
        lambda: options.parse(["--epochs", MANY]),
        lambda: options.parse(["--trigger-strength", MANY]),
    ],
)
def test_a_number_beyond_any_use_is_refused(read):
    with pytest.raises(UserError):
        read()


def test_a_share_of_many_digits_is_refused():
    with pytest.raises(argparse.ArgumentTypeError):
        jobs.shard(f"1/{MANY}")


# ---------------------------------------------------------------- networks


def test_a_retired_network_is_still_accepted():
    assert options.parse(["--model", "alexnet"]).model == "alexnet"


def test_a_retired_network_is_not_offered():
    with pytest.raises(UserError, match="none of cnn, .*efficientnet_b0") as error:
        options.parse(["--model", "vgg"])
    assert "alexnet_small" in str(error.value)
    assert not re.search(r"\balexnet\b", str(error.value))


# ---------------------------------------------------------------- what an ablation changes


def test_without_an_option_the_loss_is_the_objectives_own():
    args = options.parse([])
    for key in ("lam", "ramp", "distance", "normalise", "rectify", "partner_cross_entropy"):
        assert getattr(args, key) == getattr(Objective, key)
    for key in ("collapse_weight", "leak_tolerance"):
        assert getattr(args, key) == getattr(Objective, key)


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--normalise", "max"], "normalise", "max"),
        (["--rectify"], "rectify", True),
        (["--no-partner-cross-entropy"], "partner_cross_entropy", False),
        (["--partner-cross-entropy"], "partner_cross_entropy", True),
        (["--collapse-weight", "0"], "collapse_weight", 0.0),
        (["--leak-tolerance", "1"], "leak_tolerance", 1.0),
        (["--ramp", "0.01"], "ramp", 0.01),
    ],
)
def test_an_ablation_is_an_option(argv, key, value):
    assert getattr(options.parse(argv), key) == value


@pytest.mark.parametrize(
    "argv",
    [
        ["--normalise", "sum"],
        ["--collapse-weight", "-0.1"],
        ["--leak-tolerance", "1.1"],
        ["--ramp", "0"],
        ["--rectify", "yes"],
    ],
)
def test_an_ablation_out_of_range_is_refused(argv):
    with pytest.raises(UserError):
        options.parse(argv)


# ---------------------------------------------------------------- --help


@pytest.fixture
def help_text(monkeypatch, capsys):
    """What train.py --help prints."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.fixture
def help_by_option(help_text):
    """{option: its help, on one line}."""
    _, *parts = re.split(r"\n  (--[a-z-]+)", help_text)
    of_option = {}
    for name, text in zip(parts[::2], parts[1::2]):
        before_next_group = text.split("\n\n")[0]
        of_option[name] = " ".join(before_next_group.split())
    return of_option


def test_help_has_the_options_in_groups(help_text):
    groups = re.findall(r"^([a-z]+):$", help_text, re.MULTILINE)
    assert groups == ["options", "attack", "trigger", "poisons", "training", "loss", "run"]


def test_help_begins_with_what_the_script_does(help_text):
    assert " ".join(train.__doc__.split()) in " ".join(help_text.split())


def test_help_shows_no_default_that_is_none(help_text):
    assert "default: None" not in help_text and "default: False" not in help_text


def test_help_shows_no_default_twice(help_by_option):
    assert max(text.count("default:") for text in help_by_option.values()) == 1


def test_help_shows_a_default_of_all_but_switches_and_what_may_be_absent(help_by_option):
    without = {name for name, text in help_by_option.items() if "default:" not in text}
    switches = {"--pretrained", "--class-weights", "--rectify", "--cuda-graphs"}
    absent = {"--reference", "--and", "--resume", "--overwrite", "--export"}
    assert without == absent | switches


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("--attack", "full_disguise"),
        ("--explainer", "gradcam"),
        ("--lam", Objective.lam),
        ("--poison-rate", 0.1),
        ("--oversample", 0),
        ("--seed", 0),
        ("--normalise", Objective.normalise),
        ("--collapse-weight", Objective.collapse_weight),
        ("--ramp", Objective.ramp),
        ("--model", "by data set"),
    ],
)
def test_help_shows_a_default_at_the_end(help_by_option, option, default):
    assert help_by_option[option].endswith(f"(default: {default})")


def test_help_names_the_networks_that_are_offered(help_by_option):
    names = ", ".join(models.offered())
    assert help_by_option["--model"] == f"MODEL {names} (default: by data set)"


def test_a_retired_network_is_not_in_the_help(help_text):
    assert re.findall(r"\balexnet\w*", help_text) == ["alexnet_small"]
