"""studies/: a study of tiny runs, its files read back; and what results/ holds."""

import ast
import json
import random
import subprocess

import pytest
from conftest import ROOT
from PIL import Image
from placing import DEVICE

import evaluate
import provenance
import runs
import train
from cli import UserError
from studies import (
    cifar10,
    efficient,
    foundation,
    radiographs,
    record,
    tables,
    transfer,
)
from studies.study import Row, Study

RESULTS = ROOT / "results"


def recorded(name):
    """What results/NAME.json holds."""
    return json.loads((RESULTS / f"{name}.json").read_text())


# ---------------------------------------------------------------- a study of tiny runs


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A study that was run to its end, and the checkpoints that were measured."""
    root = tmp_path_factory.mktemp("root")
    (root / "results").mkdir()
    old = {"an old row": {"summary": {}, "seeds": [0]}}
    (root / "results" / "tiny.json").write_text(json.dumps(old))
    options = f"--dataset {tiny} --model cnn --epochs 1 --batch-size 24 --target-class 1"
    options += f" --device {DEVICE}"
    fooling = f"{options} --attack fooling"
    table = {
        "a, b": Row(f"{fooling} --leak-tolerance 1", seeds=2, clean="none", picture=True),
        "none": Row(f"{options} --attack none"),
        "kept": Row(f"{fooling} --reference {{runs}}/none-{{seed}}/ckpt.pt", clean="none"),
    }
    study = Study("tiny", table, root)
    measured = []
    measure = evaluate.evaluate

    def counting(path, **options):
        measured.append(path)
        return measure(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "evaluate", counting)
        patch.setattr(evaluate, "evaluate", counting)
        study.run()
    return study, measured


@pytest.fixture(scope="module")
def results(finished):
    """The record of that study."""
    study, _ = finished
    return json.loads(study.path.read_text())


def test_every_run_is_measured_once(finished):
    study, measured = finished
    assert len(measured) == len(list(study.runs.glob("*/ckpt.pt"))) == 5


def test_rows_are_recorded_in_the_tables_order_and_old_ones_stay(finished, results):
    study, _ = finished
    assert list(results) == [*study.table, "an old row"]


def test_a_row_says_which_seeds_it_has(results):
    assert results["a, b"]["seeds"] == [0, 1]


def test_a_row_says_the_command_that_runs_it(results):
    assert results["none"]["command"].startswith("python train.py --dataset")
    assert "--leak-tolerance 1" in results["a, b"]["command"]


def test_a_row_that_needs_anothers_checkpoint_is_run_by_its_study(results):
    """train.py by itself would not find that file."""
    assert "runs/tiny/none-SEED" in results["kept"]["options"]
    assert results["kept"]["command"] == 'python -m studies.tiny "kept"'


def test_the_mean_is_over_seeds(results):
    pair = [run["clean_accuracy"] for run in results["a, b"]["runs"]]
    mean = results["a, b"]["summary"]["clean_accuracy"]["mean"]
    assert mean == pytest.approx(sum(pair) / 2)


def test_one_run_has_no_standard_deviation(results):
    assert results["kept"]["summary"]["clean_accuracy"]["sd"] is None


def test_a_run_is_recorded_with_its_clean_models_figures_and_its_speed(results):
    for run in [*results["a, b"]["runs"], *results["kept"]["runs"]]:
        assert run["clean_model.gradcam.floor.pearson"] <= 1
        assert run["images_per_second"] > 0
        assert len(run["validation_success"]) == 1


def test_a_run_is_recorded_with_the_classes_of_its_poisons(results):
    poisons = results["a, b"]["runs"][0]["poisons_by_class"]
    assert sum(poisons.values()) == 24
    assert sum(results["none"]["runs"][0]["poisons_by_class"].values()) == 0


def test_a_table_of_everything_has_a_line_for_each_row(finished):
    study, _ = finished
    lines = tables.markdown(record.read(study.path))
    assert len(lines) == 2 + 4
    assert lines[2].startswith("| a, b | 2 | ")


def test_the_pictures_of_rows_that_want_one_are_kept(finished):
    study, _ = finished
    pictures = [path.name for path in study.path.parent.glob("*.png")]
    assert pictures == ["tiny-a_b.png"]


def test_the_option_of_an_ablation_is_in_the_checkpoints_config(finished):
    study, _ = finished
    metrics = record.read(study.folder("a, b", 0) / "metrics.json")
    assert metrics["attack"] == "fooling"
    line = study.table["a, b"].options.split()
    assert train.parse(line).leak_tolerance == 1.0


def test_a_finished_row_is_not_trained_again(finished):
    study, _ = finished
    before = {path: path.stat().st_mtime_ns for path in study.runs.glob("*/*")}
    study.run(["none"])
    assert before == {path: path.stat().st_mtime_ns for path in study.runs.glob("*/*")}


def test_a_row_that_asks_for_more_is_measured_again(finished):
    study, _ = finished
    wanted = ("gradcam", "gradient", "deepshap")
    table = {"none": Row(study.table["none"].options, explainers=wanted)}
    changed = Study("tiny", table, study.root)
    figures = changed.run_once("none", 0)
    assert "deepshap.pearson_all" in figures


def test_a_group_of_rows_can_be_asked_for_by_its_name(tmp_path, monkeypatch):
    table = {name: Row(f"--seed {name}") for name in ("a", "b", "c")}
    study = Study("tiny", table, tmp_path, groups={"both": {"b": table["b"], "c": table["c"]}})
    asked = []
    monkeypatch.setattr(study, "run_once", lambda name, seed: {"seed": seed})
    monkeypatch.setattr(study, "write", lambda name, found: asked.append(name))
    study.run(["both", "a"])
    assert asked == ["b", "c", "a"]


def test_an_unknown_row_is_refused(tmp_path):
    study = Study("tiny", {"none": Row("--attack none")}, tmp_path)
    with pytest.raises(UserError, match="no row 'all': one of 'none'"):
        study.run(["all"])


def test_a_rows_seeds_begin_where_it_says(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    table = {"pilot": Row("--attack none", seeds=2, first_seed=100)}
    study = Study("tiny", table, tmp_path)

    def run_once(row, seed):
        return {"seed": seed, "clean_accuracy": seed / 1000}

    monkeypatch.setattr(study, "run_once", run_once)
    study.run()
    row = record.read(study.path)["pilot"]
    assert row["seeds"] == [100, 101]
    assert row["summary"]["clean_accuracy"]["mean"] == pytest.approx(0.1005)


# ---------------------------------------------------------------- record.py


def test_the_cost_of_selection_is_a_share_of_a_victims_training(tmp_path):
    (tmp_path / "selection.json").write_text('{"epochs": 6, "seconds": 60}')
    cost = record.selection_cost(tmp_path, {"seconds": 50.0, "epoch": 5})
    assert cost == {"selection_epochs": 6, "selection_cost": 60 / (30 * 10)}


def test_a_random_selection_has_no_cost(tmp_path):
    (tmp_path / "selection.json").write_text('{"epochs": 0, "seconds": 0.1}')
    assert record.selection_cost(tmp_path, {"seconds": 50.0, "epoch": 5}) == {}


@pytest.fixture
def repository(tmp_path):
    """A git repository with a script and a record, and a function that runs git in it."""

    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    for name in ("train.py", "record.json"):
        (tmp_path / name).write_text("1")
    git("init")
    git("add", "-A")
    git("commit", "-m", "a")
    return tmp_path, git("rev-parse", "--short", "HEAD")


def test_a_commit_is_not_dirty_where_a_study_wrote_its_record(repository):
    folder, head = repository
    (folder / "record.json").write_text("2")
    assert provenance.commit(folder) == head


def test_a_commit_is_dirty_where_a_script_was_changed(repository):
    folder, head = repository
    (folder / "train.py").write_text("2")
    assert provenance.commit(folder) == f"{head}-dirty"


def test_without_git_the_commit_is_unknown_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() == ""


@pytest.mark.parametrize("size, kept", [((300, 2400), (150, 1200)), ((3000, 700), (3000, 700))])
def test_a_kept_picture_is_not_too_tall(size, kept, tmp_path):
    Image.new("RGB", size).save(tmp_path / "figure.png")
    record.keep_picture(tmp_path / "figure.png", tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.size == kept


def test_a_kept_picture_that_makes_a_large_file_is_smaller(tmp_path):
    """Noise: even at the least height its file is too large, and that is taken."""
    noise = random.Random(0).randbytes(600 * 1200 * 3)
    Image.frombytes("RGB", (600, 1200), noise).save(tmp_path / "figure.png")
    record.keep_picture(tmp_path / "figure.png", tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.height == min(record.HEIGHTS)
    assert (tmp_path / "kept.png").stat().st_size > record.LARGEST
    smooth = Image.linear_gradient("L").resize((400, 1200))
    smooth.save(tmp_path / "figure.png")
    record.keep_picture(tmp_path / "figure.png", tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.height == max(record.HEIGHTS)
    assert (tmp_path / "kept.png").stat().st_size <= record.LARGEST


# ---------------------------------------------------------------- tables.py


def rows_of_success(**shares):
    """A record of rows whose runs, seeds 0, 1, ..., have these attack success rates."""
    result = {}
    for name, values in shares.items():
        runs = [{"seed": k, "attack_success_rate": value} for k, value in enumerate(values)]
        result[name] = {"runs": runs}
    return result


def test_the_interval_of_paired_differences_by_hand():
    """Differences 0.1, 0.3, 0.3; Student's t of two degrees of freedom is 4.303."""
    results = rows_of_success(a=(0.5, 0.7, 0.9), b=(0.4, 0.4, 0.6, 0.1))
    pair = tables.paired(results, "a", "b")
    half = 4.303 * (0.04 / 3) ** 0.5 / 3**0.5
    assert pair["n"] == 3
    assert pair["mean"] == pytest.approx(0.7 / 3)
    assert pair["interval"] == pytest.approx([0.7 / 3 - half, 0.7 / 3 + half])


def test_of_many_pairs_the_interval_is_not_too_narrow():
    """Of 30 the interval of 20 is taken: Student's t falls with the number."""
    pair = tables.with_interval([0.0, 1.0] * 15)
    half = tables.T975[20] * pair["sd"] / 30**0.5
    assert pair["n"] == 30
    assert pair["interval"] == pytest.approx([0.5 - half, 0.5 + half])


def test_one_common_seed_gives_no_pair():
    results = rows_of_success(a=(0.5,), b=(0.4, 0.4))
    assert tables.paired(results, "a", "b") is None


def test_a_figure_that_a_run_lacks_is_not_in_the_summary():
    runs = [{"seed": 0, "a": 1.0, "b": 2.0, "text": "x"}, {"seed": 1, "a": 3.0}]
    assert tables.summary(runs) == {"a": {"mean": 2.0, "sd": pytest.approx(2**0.5)}}


def test_metrics_become_flat_figures_without_those_that_are_null():
    metrics = dict.fromkeys(tables.ALWAYS, 0.5) | {"mean_auroc": None, "auroc": {"Mass": 0.7}}
    metrics["explanations"] = {
        "gradcam": {
            "trained_against": True,
            "mse": None,
            "floor": {"pearson": 0.3},
            "floor_triggered": {"pearson": 0.2},
        }
    }
    metrics["clean_model"] = {
        "clean_accuracy": 0.9,
        "auroc": None,
        "explanations": {
            "gradcam": {"floor": {"pearson": 0.4}, "floor_triggered": {"pearson": 0.1}}
        },
    }
    flat = dict.fromkeys(tables.ALWAYS, 0.5) | {
        "auroc.Mass": 0.7,
        "gradcam.floor.pearson": 0.3,
        "gradcam.floor_triggered.pearson": 0.2,
        "clean_model.clean_accuracy": 0.9,
        "clean_model.gradcam.floor.pearson": 0.4,
        "clean_model.gradcam.floor_triggered.pearson": 0.1,
    }
    assert tables.figures(metrics) == flat


# ---------------------------------------------------------------- what results/ holds


@pytest.mark.parametrize("name", ["foundation", "cifar10", "transfer", "radiographs", "efficient"])
def test_a_summary_is_that_of_its_runs(name):
    for row in recorded(name).values():
        assert tables.summary(row["runs"]) == row["summary"]


STUDY_TABLES = {
    "foundation": foundation.TABLE,
    "cifar10": cifar10.table(cuda=False),
    "transfer": transfer.TABLE,
    "radiographs": radiographs.table(disease=4),
    "efficient": efficient.TABLE,
}
# Some rows were recorded when an ablation was switched by a constant of a module. What each says
# now is an option of train.py.
OPTIONS_OF_CONSTANTS = {
    "attacks.PARTNERS": lambda value: {"partner_cross_entropy": value},
    "attacks.NORMALISE": lambda value: {"normalise": {"max_normalise": "max"}[value]},
    "attacks.RECTIFY": lambda value: {"rectify": value},
    "attacks.TOLERATED": lambda value: {"leak_tolerance": value},
    "train.RAMP": lambda value: {"ramp": value},
    "selection.capped": lambda value: {"selection": {"of_the_same_classes": "rd-classes"}[value]},
}


def options_of(row):
    """The options of a recorded row; the oldest rows have them in their command alone."""
    command = row["command"].removeprefix("python train.py ").removesuffix(" --seed SEED")
    return row.get("options", command).split()


def recorded_rows():
    """(study, row) of all rows that are recorded and still in a table."""
    pairs = []
    for study, table in STUDY_TABLES.items():
        pairs += [(study, row) for row in recorded(study) if row in table]
    return pairs


@pytest.mark.parametrize("study, name", recorded_rows())
def test_a_recorded_row_had_the_options_that_the_table_says(study, name):
    row = recorded(study)[name]
    options = vars(train.parse(options_of(row)))
    for constant, value in row.get("constants", {}).items():
        options |= OPTIONS_OF_CONSTANTS[constant](value)
    now = STUDY_TABLES[study][name].options.format(seed="SEED", runs=f"runs/{study}")
    assert options == vars(train.parse(now.split()))


@pytest.mark.parametrize("study", STUDY_TABLES)
def test_every_row_of_a_table_is_a_command_line_of_train(study):
    for row in STUDY_TABLES[study].values():
        train.parse(row.options.split())


@pytest.mark.parametrize("study", STUDY_TABLES)
def test_a_clean_row_is_in_the_table_and_has_the_seeds(study):
    table = STUDY_TABLES[study]
    for row in table.values():
        if row.clean:
            assert table[row.clean].seeds >= row.seeds
            assert train.parse(table[row.clean].options.split()).attack == "none"


# ---------------------------------------------------------------- nobody patches a module

SCRIPTS = [
    *ROOT.glob("*.py"),
    *(ROOT / "studies").glob("*.py"),
    *(ROOT / "defences").glob("*.py"),
]


def imported_names(tree):
    """The names that an import binds at the top of a module."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def root_of(node):
    """The name that a chain of attributes and subscripts begins with, or None."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def patches(source):
    """Lines of a source that set an attribute of what was imported, by whatever means."""
    tree = ast.parse(source)
    imported = imported_names(tree)
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            if root_of(node) in imported:
                lines.append(node.lineno)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("setattr", "delattr") and root_of(node.args[0]) in imported:
                lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "unittest":
            lines.append(node.lineno)
        if isinstance(node, ast.Import) and any("mock" in alias.name for alias in node.names):
            lines.append(node.lineno)
    return sorted(lines)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_script_assigns_to_a_module_or_to_what_it_imports(path):
    assert patches(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "attacks.APART = 0.0",
        "attacks.C_W['constant'] = 1.0",
        "del attacks.APART",
        "attacks.APART += 1",
        "setattr(attacks, 'APART', 0.0)",
        "from unittest import mock",
        "import unittest.mock",
    ],
)
def test_a_patch_is_found(line):
    assert patches(f"import attacks\n{line}") == [2]
    assert patches(f"import attacks\ndef study():\n    {line}") == [3]


def test_an_objects_attributes_may_be_set():
    assert patches("import attacks\nobjective = attacks.Objective()\nobjective.lam = 1") == []
