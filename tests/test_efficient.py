"""studies/efficient.py: its rows are what their names say, and what it makes of its record."""

import json
import math

import pytest
import torch
from conftest import ROOT
from PIL import Image

import figure
import selection
import train
from studies import efficient, efficient_tables, tables

# ---------------------------------------------------------------- rows

ROWS = efficient.TABLE.items()
PARSED = {name: train.parse(row.options.split()) for name, row in ROWS}
EACH_ROW = pytest.mark.parametrize("name", efficient.TABLE)


def words(name):
    """The words of a row's name."""
    return name.replace(",", "").split()


@EACH_ROW
def test_a_row_has_the_attack_its_name_says(name):
    named = [word for word in words(name) if word in ("none", "full_disguise")]
    assert PARSED[name].attack == (named[0] if named else "badnets")


@EACH_ROW
def test_a_row_has_the_selection_its_name_says(name):
    expected = "rd-global" if "rd-global" in words(name) else "random"
    if "classes" in words(name):
        expected = "rd-classes"
    assert PARSED[name].selection == expected


@EACH_ROW
def test_a_row_is_oversampled_where_its_name_says_so(name):
    assert PARSED[name].oversample == (6 if "oversampled" in words(name) else 0)


@EACH_ROW
def test_the_floor_is_lower_for_the_disguise_of_random_images_on_cifar10(name):
    lower = name in (f"{net} full_disguise random oversampled" for net in ("cnn", "resnet18"))
    assert PARSED[name].floor["gradcam"] == (0.4 if lower else 0.5)


@EACH_ROW
def test_every_row_has_the_same_trigger_and_target(name):
    args = PARSED[name]
    assert (args.trigger, args.trigger_size) == ("yellow", 5)
    assert (args.trigger_position, args.target_class) == ("lower-right", "1")


@EACH_ROW
def test_a_row_has_the_data_and_the_number_of_poisons_its_name_says(name):
    first = words(name)[0]
    args = PARSED[name]
    trained = (args.dataset, args.model, args.epochs)
    if first == "shapes":
        assert trained == ("shapes", "cnn", 8)
        assert args.poison_rate == int(words(name)[-1]) / 10_000
        assert efficient.TABLE[name].seeds == 3
        return
    assert trained == ("cifar10", first, {"cnn": 5, "resnet18": 10}[first])
    images = 0 if "none" in words(name) else 55
    assert args.poison_rate == images / 50_000


@EACH_ROW
def test_a_clean_model_is_trained_as_the_row_it_stands_beside(name):
    row = efficient.TABLE[name]
    if row.clean:
        clean = efficient.TABLE[row.clean]
        assert row.options.startswith(clean.options.removesuffix("--attack none"))
        assert row.seeds <= clean.seeds


@EACH_ROW
def test_every_row_is_of_an_attacker_who_trains(name):
    assert PARSED[name].threat == "training"


def test_the_groups_are_the_table():
    grouped = [row for rows in efficient.GROUPS.values() for row in rows]
    assert sorted(grouped) == sorted(efficient.TABLE)
    assert sum(name.startswith("shapes") for name in efficient.TABLE) == 32


# ---------------------------------------------------------------- random images of some classes


@pytest.fixture
def order():
    """Indices by falling score, class 7 in front, class 3 absent; and all labels."""
    labels = torch.arange(1000) % 10
    order = torch.arange(999, -1, -1)
    order = order[labels[order] != 3]
    sevens = labels[order] == 7
    return torch.cat([order[sevens], order[~sevens]]), labels


def test_the_classes_are_those_of_the_hardest_images(order):
    order, labels = order
    hardest = selection.capped(order, labels, 45)  # as many of class 7 as the cap allows
    wanted = labels[hardest].bincount(minlength=10)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        drawn = selection.random_of_same_classes(order, labels, 45, generator)
        assert len(drawn.unique()) == 45
        assert torch.equal(labels[drawn].bincount(minlength=10), wanted)


def test_any_image_of_a_class_may_be_drawn(order):
    order, labels = order
    generator = torch.Generator().manual_seed(0)
    drawn = [selection.random_of_same_classes(order, labels, 45, generator) for _ in range(200)]
    assert len(torch.cat(drawn).unique()) > 800  # of 900


# ---------------------------------------------------------------- what the record says


def row(*success):
    """A recorded row of seeds 0, 1, ... with these attack success rates."""
    runs = [{"seed": seed, "attack_success_rate": share} for seed, share in enumerate(success)]
    mean = sum(success) / len(success)
    return {"summary": {"attack_success_rate": {"mean": mean}}, "runs": runs}


RESULTS = {
    "shapes badnets random 5": row(0.25),
    "shapes badnets random 20": row(0.5, 0.5),
    "shapes full_disguise random oversampled 20": row(0.25, 0.75),
    "shapes badnets rd-global oversampled 100": row(1.0),
    "cnn none": row(0.0),
}


def test_the_curve_has_the_rows_that_there_are():
    assert efficient.success_by_count(RESULTS) == {
        "badnets random": [(5, 0.25), (20, 0.5)],
        "badnets rd-global oversampled": [(100, 1.0)],
        "full_disguise random oversampled": [(20, 0.5)],
    }


@pytest.fixture
def written(tmp_path, capsys):
    """The folder that the comparisons of RESULTS were written into."""
    path = tmp_path / "efficient.json"
    path.write_text(json.dumps(RESULTS))
    efficient.write_comparisons(path)
    return tmp_path


def test_pairs_are_written_of_the_rows_that_there_are(written):
    pairs = json.loads((written / "efficient-paired.json").read_text())
    disguised = "shapes full_disguise random oversampled 20"
    assert [(pair["of"], pair["minus"], pair["mean"]) for pair in pairs] == [
        (disguised, "shapes badnets random 20", 0.0),
    ]


def test_the_curve_is_drawn_on_a_logarithmic_axis(written):
    """5 images at 0.25, 20 at 0.5, 100 at 1: the ends of the axis, and one between."""
    page = Image.open(written / "efficient-curve.png").convert("RGB")
    middle = 54 + round(620 * math.log(4) / math.log(20))
    places = {(54, 292): 0, (middle, 212): 2, (674, 52): 1}
    assert [page.getpixel(place) for place in places] == [figure.LINES[k] for k in places.values()]


def test_the_recorded_pairs_are_those_of_the_record():
    results = json.loads((ROOT / "results" / "efficient.json").read_text())
    pairs = json.loads((ROOT / "results" / "efficient-paired.json").read_text())
    assert [pair for pair in efficient.differences(results) if pair] == pairs


# ---------------------------------------------------------------- tables of the page

SUMMARY = {"summary": {"attack_success_rate": {"mean": 0.5, "sd": None}}}


@pytest.mark.parametrize(
    "options, commit, text",
    [
        ("--selection rd-global", "1efda64", "0.500 †"),
        ("--selection rd-global", "a1f88a7", "0.500"),
        ("--selection random", "1efda64", "0.500"),
    ],
)
def test_a_success_is_marked_where_the_scorer_had_the_victims_seed(options, commit, text):
    row = SUMMARY | {"options": options, "runs": [{"commit": commit}]}
    assert efficient_tables.success_cell(row) == text


def test_a_row_that_was_not_run_is_called_so():
    assert efficient_tables.success_cell(None) == "not run"


def test_limits_are_of_the_clean_model_of_the_same_seed(monkeypatch):
    """Floors 0.3 and 0.1 for seeds 1 and 0: the one disguised run is of seed 1."""
    run = {"seed": 1, "attack_success_rate": 0.95, "gradcam.pearson_all": 0.8}
    run |= {"gradcam.floor_triggered.pearson": 0.34, "gradcam.trigger_mass": 0.2}
    run |= {"gradcam.trigger_area": 0.2, "clean_model.gradcam.floor.pearson": 0.0}
    mass = {"gradcam.trigger_mass": 0.1, "gradcam.trigger_mass_clean": 0.2}
    clean = [mass | {"gradcam.floor_triggered.pearson": floor} for floor in (0.1, 0.3)]
    results = {
        "cnn none": {"seeds": [0, 1], "runs": clean},
        "cnn full_disguise random oversampled": {"seeds": [1], "runs": [run]},
        "resnet18 full_disguise random oversampled": {"seeds": [], "runs": []},
    }
    monkeypatch.setattr(efficient_tables, "read", lambda path: results)
    lines = efficient_tables.limits()
    assert lines[0] == "| asked | cnn, seed 1 | met in |"
    cells = [line.split(" | ")[1:] for line in lines[2:]]
    assert cells == [
        ["0.9500 (0.9000)", "1 of 1 |"],
        ["0.8000 (0.8500)", "0 of 1 |"],
        ["0.3400 (0.3500)", "1 of 1 |"],
        ["0.2000 (0.3000)", "1 of 1 |"],
        ["0.2000 (0.1750)", "0 of 1 |"],
    ]


def test_the_pages_pairs_are_the_studys():
    assert set(efficient_tables.DIFFERENCES.values()) == set(efficient.PAIRS_BY_COUNT)


def test_the_pages_columns_are_the_lines_of_the_curve_and_the_control():
    assert set(efficient_tables.CURVE.values()) == {*efficient.LINES, efficient.CLASSES}


def test_a_pair_is_written_as_mean_and_interval():
    pair = {"mean": 0.0812, "interval": [-0.041, 0.121]}
    assert tables.interval_text(pair) == "+0.081 (-0.041 to +0.121)"


def test_the_origin_of_rows_names_hardware_and_commits_once():
    runs = [{"hardware": "cpu", "commit": "b"}, {"hardware": "cpu", "commit": "a"}, {}]
    results = {"one": {"runs": runs}, "two": {"runs": runs[:1]}, "other": {"runs": [None]}}
    assert tables.origin(results, ["one", "two"]) == "*Trained on: cpu, commits a, b.*"
