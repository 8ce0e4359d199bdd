"""What a measured checkpoint leaves: files that are whole, and a table that explains itself."""

import json

import pytest
from PIL import Image

import ours
import report
from cli import UserError
from metrics import FIGURES
from report import Result, flat, print_table, show


def picture(colour):
    return Image.new("RGB", (3, 2), colour)


@pytest.fixture
def result():
    pictures = {"figure": picture("red"), "figure-deepshap": picture("blue")}
    return Result({"attack": "none", "clean_accuracy": 0.5}, pictures)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- files


def test_metrics_and_pictures_are_written(result, tmp_path):
    report.write(result, tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    assert names_in(folder) == ["figure-deepshap.png", "figure.png", "metrics.json"]
    assert json.loads((folder / "metrics.json").read_text()) == result.metrics
    assert Image.open(folder / "figure.png").getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(folder / "figure-deepshap.png").getpixel((0, 0)) == (0, 0, 255)


def test_only_a_measurements_own_pictures_are_replaced(tmp_path):
    picture("blue").save(tmp_path / "figure-holiday.png")
    for name in ("figure-deepshap.png", "figure-selection.png"):
        ours.save_picture(picture("blue"), tmp_path / name)
    report.write(Result({}, {"figure": picture("red")}), tmp_path)
    assert names_in(tmp_path) == ["figure-holiday.png", "figure.png", "metrics.json"]
    assert Image.open(tmp_path / "figure-holiday.png").getpixel((0, 0)) == (0, 0, 255)


def test_one_pictures_files_have_its_name_and_leave_the_others(result, tmp_path):
    (tmp_path / "figure-deepshap.png").write_text("old")
    result.pictures = {"figure": picture("red")}
    report.write(result, tmp_path, stem="cat")
    assert names_in(tmp_path) == ["cat-explained.json", "cat-explained.png", "figure-deepshap.png"]


def test_a_folder_that_cannot_be_made_is_one_line(result, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to .*file"):
        report.write(result, tmp_path / "file")


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98765, "0.9877"), (1.0, "1.0000"), (24, "24"), (None, "-"), ("cnn", "cnn")],
)
def test_figures_as_text(value, text):
    assert show(value) == text


def test_the_floor_is_flat_beside_the_other_figures():
    assert flat({"mse": 1, "floor": {"mse": 2, "pearson": 3}}) == {
        "mse": 1,
        "floor.mse": 2,
        "floor.pearson": 3,
    }


def test_figures_without_a_floor_stay():
    assert flat({"mse": 1}) == {"mse": 1}


def test_every_figure_about_maps_is_defined():
    assert set(FIGURES) <= report.MAP_FIGURES.keys()


def metrics_of(attack, trained_against, **changes):
    """A small metrics.json, of one explainer."""
    common = {"attack": attack, "dataset": "some/where/tiny.npz", "model": "cnn", "seed": 0}
    gradcam = {
        "trained_against": trained_against,
        "n": 40,
        "pearson_all": 0.75,
        "pointing": None,
        "floor": {"pearson": 0.25},
    }
    return common | {
        "threat": "data",
        "poison_count": 24,
        "poison_rate": 0.1,
        "poison_rate_trained_on": 0.111,
        "clean_accuracy": 0.98,
        "mean_auroc": None,
        "clean_model": {"clean_accuracy": None},
        "explanations": {"gradcam": gradcam},
        **changes,
    }


CLEAN_MODEL = {
    "clean_accuracy": 0.96,
    "explanations": {"gradcam": {"pearson_all": 0.5, "floor": {"pearson": 0.125}}},
}


@pytest.fixture
def table(capsys):
    """Function of {name: metrics}: the lines of the table, by their first word."""

    def lines(metrics):
        print_table(metrics)
        printed = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line for line in reversed(printed) if line}

    return lines


def test_a_line_has_a_figure_its_value_and_what_it_is(table):
    lines = table({"run": metrics_of("badnets", False)})
    definition = report.DEFINITIONS["clean_accuracy"]
    assert lines["clean_accuracy"].split(maxsplit=2) == ["clean_accuracy", "0.9800", definition]
    assert lines["poison_count"].split() == ["poison_count", "24"]
    assert lines["poison_rate"].split()[:2] == ["poison_rate", "0.1"]
    assert lines["poison_rate_trained_on"].split()[:2] == ["poison_rate_trained_on", "0.111"]
    assert lines["dataset"].split() == ["dataset", "tiny"]


def test_figures_without_a_meaning_have_no_line(table):
    lines = table({"run": metrics_of("badnets", False)})
    assert not {"mean_auroc", "pointing", "reference.clean_accuracy", "[1]"} & lines.keys()


def test_the_floor_has_a_line(table):
    lines = table({"run": metrics_of("badnets", False)})
    assert lines["floor.pearson"].split()[1] == "0.2500"


def test_several_checkpoints_are_columns_in_their_order(table):
    metrics = {"a": metrics_of("badnets", False), "b": metrics_of("none", False, seed=7)}
    lines = table(metrics)
    assert lines["attack"].split() == ["attack", "badnets", "none"]
    assert lines["seed"].split() == ["seed", "0", "7"]
    assert lines["[2]"] == "[2] b"


def test_a_figure_that_one_checkpoint_lacks_is_a_dash(table):
    metrics = {"a": metrics_of("badnets", False), "b": metrics_of("none", False, mean_auroc=0.7)}
    assert table(metrics)["mean_auroc"].split()[1:3] == ["-", "0.7000"]


@pytest.mark.parametrize(
    ("trained", "heading"),
    [
        ([True, True], "gradcam: trained against"),
        ([False, False], "gradcam: not trained against"),
        ([True, False], "gradcam"),
    ],
)
def test_it_is_said_whether_an_explainer_was_trained_against(trained, heading, capsys):
    print_table({str(k): metrics_of("badnets", part) for k, part in enumerate(trained)})
    assert heading in capsys.readouterr().out.splitlines()


def test_the_clean_models_figures_stand_below_the_attacked_ones(table):
    lines = table({"run": metrics_of("badnets", False, clean_model=CLEAN_MODEL)})
    assert lines["reference.clean_accuracy"].split()[1] == "0.9600"
    assert lines["reference.pearson_all"].split()[1] == "0.5000"
    assert lines["reference.floor.pearson"].split()[1] == "0.1250"


def test_of_several_labels_every_class_has_a_line(table):
    auroc = {"nodule": 0.875, "mass": None}
    lines = table({"run": metrics_of("badnets", False, auroc=auroc)})
    assert lines["auroc.nodule"].split() == ["auroc.nodule", "0.8750"]
    assert lines["auroc.mass"].split() == ["auroc.mass", "-"]
