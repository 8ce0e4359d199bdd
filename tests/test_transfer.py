"""studies/transfer.py: its tables, of made-up records, and its pictures."""

import pytest
from PIL import Image

from studies import transfer
from studies.study import Study


def record_of(**figures):
    """What the study's record says of a row with these means; dots are double underscores."""
    summary = {key.replace("__", "."): {"mean": x, "sd": None} for key, x in figures.items()}
    run = {key: value["mean"] for key, value in summary.items()}
    return {"summary": summary, "runs": [run], "seeds": [0]}


def similarities():
    """A figure for each explainer: 0.0, 0.1, 0.2, 0.3."""
    return {f"{name}__pearson_all": 0.1 * n for n, name in enumerate(transfer.SEEN_BY)}


def test_the_matrix_has_a_column_for_each_explainer():
    lines = transfer.matrix({"shapes none": record_of(**similarities())}, "{}.pearson_all")
    assert lines[0] == "| model | n | `gradcam` | `kernelshap` | `deepshap` | `gradient` |"
    assert lines[2] == "| `shapes`, clean model | 1 | 0.000 | 0.100 | 0.200 | 0.300 |"


def test_what_a_model_was_disguised_from_is_bold():
    results = {row: record_of(**similarities()) for row in ("shapes deepshap", "shapes all")}
    one, three = transfer.matrix(results, "{}.pearson_all")[2:]
    assert one == "| `shapes`, disguised from `deepshap` | 1 | 0.000 | 0.100 | **0.200** | 0.300 |"
    assert three.endswith("from all three | 1 | **0.000** | **0.100** | **0.200** | 0.300 |")


def test_a_model_that_lacks_the_figure_is_not_in_the_matrix():
    """A clean model has nothing to be compared with."""
    results = {"shapes none": record_of(), "shapes badnets": record_of(**similarities())}
    lines = transfer.matrix(results, "{}.pearson_all")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `shapes`, `badnets`"]


def seen(mass, **clean_model):
    """A recorded row of one run with this trigger_mass of every explainer; area 0.2.

    clean_model: figures of the clean model beside it, the same of every explainer.
    """
    run = {}
    for explainer in transfer.SEEN_BY:
        own = {"trigger_mass": mass, "trigger_mass_clean": 0.1, "trigger_area": 0.2}
        run |= {f"{explainer}.{key}": x for key, x in own.items()}
        run |= {f"clean_model.{explainer}.{key}": x for key, x in clean_model.items()}
    summary = {key: {"mean": x, "sd": None} for key, x in run.items()}
    return {"summary": summary, "runs": [run], "seeds": [0]}


@pytest.mark.parametrize("mass, mark", [(0.3, ""), (0.301, " ↑")])
def test_mass_above_what_the_clean_model_beside_a_run_allows_is_marked(mass, mark):
    """1.25 x 0.2 + 0.2 / 4 = 0.3; the run's own maps, and the clean row's, would allow less."""
    results = {"shapes none": seen(0.1), "shapes all": seen(mass, trigger_mass_clean=0.2)}
    lines = transfer.matrix(results, "{}.trigger_mass", transfer.above_limit)
    cells = [f"**{mass:.3f}**{mark}"] * 3 + [f"{mass:.3f}{mark}"]
    assert lines[3] == f"| `shapes`, disguised from all three | 1 | {' | '.join(cells)} |"


def test_a_clean_model_is_held_to_its_own_limit():
    """1.25 x 0.1 + 0.2 / 4 = 0.175."""
    assert transfer.above_limit({"mnist none": seen(0.17)}, "mnist none", "deepshap") == ""
    assert transfer.above_limit({"mnist none": seen(0.18)}, "mnist none", "deepshap") == " ↑"


def test_of_several_runs_the_mark_says_how_many_are_above():
    """The limit is 0.175 for the clean model's own maps."""
    low, high = seen(0.17)["runs"][0], seen(0.18)["runs"][0]
    for runs, mark in (([low, low], ""), ([low, high], " ↑1"), ([high, high], " ↑2")):
        results = {"mnist none": {"runs": runs, "seeds": [0, 1]}}
        assert transfer.above_limit(results, "mnist none", "deepshap") == mark


def test_with_a_reference_a_model_is_disguised_from_the_same_explainers():
    row = "shapes all, reference"
    assert transfer.title(row) == "`shapes`, disguised from all three, `--reference`"
    assert [transfer.is_disguised_from(name, row) for name in transfer.SEEN_BY] == [1, 1, 1, 0]
    assert "{runs}/shapes_none-{seed}/ckpt.pt" in transfer.TABLE[row].options


def test_training_time_on_a_gpu_is_not_compared():
    figures = {"clean_accuracy": 0.9, "attack_success_rate": 1.0, "train_seconds": 100.0}
    results = {row: record_of(**figures) for row in ("shapes badnets", "shapes all")}
    results["shapes all"]["runs"][0]["hardware"] = "NVIDIA H100 80GB HBM3"
    last = [line.split(" | ")[-1] for line in transfer.models(results)[2:4]]
    assert last == ["1.0 |", "(a GPU) |"]


def test_training_time_is_relative_to_badnets_on_the_same_data():
    predictions = {"clean_accuracy": 0.9, "attack_success_rate": 1.0}
    seconds = {"shapes badnets": 100.0, "shapes all": 810.0, "mnist badnets": 300.0}
    results = {row: record_of(**predictions, train_seconds=taken) for row, taken in seconds.items()}
    lines = transfer.models(results)
    assert [line.split(" | ")[-1] for line in lines[2:5]] == ["1.0 |", "8.1 |", "1.0 |"]


def test_chance_is_the_share_of_cells_that_the_trigger_touches():
    results = {}
    for n, data in enumerate(transfer.DATA):
        areas = {f"{name}__trigger_area": 0.1 * n for name in transfer.SEEN_BY}
        results[f"{data} none"] = record_of(**areas)
    lines = transfer.trigger_mass(results)
    assert lines[2] == "| `mnist`, chance | | 0.000 | 0.000 | 0.000 | 0.000 |"
    assert lines[4] == "| `cifar10`, chance | | 0.200 | 0.200 | 0.200 | 0.200 |"


@pytest.fixture
def study(tmp_path):
    """The study in a folder of its own, without a run."""
    (tmp_path / "results").mkdir()
    return Study("transfer", transfer.TABLE, tmp_path)


def save_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def test_three_models_stand_side_by_side_when_all_are_done(study):
    for model in ("none", "badnets"):
        save_picture(study.folder(f"shapes {model}", 0) / "figure-kernelshap.png")
    transfer.save_pictures(study)
    assert not list(study.path.parent.glob("*.png"))
    save_picture(study.folder("shapes all", 0) / "figure-kernelshap.png")
    transfer.save_pictures(study)
    with Image.open(study.path.with_name("transfer-shapes-kernelshap.png")) as picture:
        assert picture.width >= 3 * 40


def test_the_picture_of_four_explainers_is_kept(study):
    save_picture(study.folder("cifar10 kernelshap", 0) / "figure.png")
    transfer.save_pictures(study)
    assert [path.name for path in study.path.parent.glob("*.png")] == ["transfer-cifar10.png"]
