"""studies/explainers.py: its rows are what their names say, and its tables, of a made-up record."""

import pytest

import train
from cli import write_json
from explain import EXPLAINERS
from studies import explainers, pages, tables
from studies.study import Study

PARSED = {name: train.parse(row.options.split()) for name, row in explainers.TABLE.items()}


def test_each_row_is_disguised_from_the_explainer_it_is_called_after():
    attacks = {name: (args.attack, args.explainer) for name, args in PARSED.items()}
    assert attacks.pop("none")[0] == "none" and attacks.pop("badnets")[0] == "badnets"
    assert attacks == {name: ("full_disguise", [name]) for name in explainers.AGAINST}
    assert {args.dataset for args in PARSED.values()} == {"shapes"}


def test_every_explainer_looks_at_every_model_but_one_that_estimates_the_same():
    assert {*explainers.SEEN_BY} == {*EXPLAINERS} - {"gpshap"}
    assert {row.explainers for row in explainers.TABLE.values()} == {explainers.SEEN_BY}


def test_every_attacked_model_stands_beside_the_clean_one_of_its_seed(tmp_path):
    study = Study("explainers", explainers.TABLE, tmp_path)
    for name, row in explainers.TABLE.items():
        needed = [] if name == "none" else [("none", 0)]
        assert study.needed(name, 0) == needed and row.seeds == explainers.SEEDS
    folders = {study.folder(name, 0).name for name in explainers.TABLE}
    assert len(folders) == len(explainers.TABLE)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A record of one row: figure k of it is k / 10, in the order of SEEN_BY."""
    figures = {"clean_accuracy": 0.99, "attack_success_rate": 1.0, "train_seconds": 60.0}
    for k, name in enumerate(explainers.SEEN_BY):
        figures |= {f"{name}.pearson_all": k / 10, f"{name}.floor.pearson": k / 20}
    runs = [figures | {"seed": 0}]
    row = {"summary": tables.summary(runs), "runs": runs, "seeds": [0]}
    write_json(tmp_path / "explainers.json", {"gradcam++": row})
    monkeypatch.setattr(tables, "RESULTS", tmp_path)


def test_a_table_has_a_row_for_each_model_and_a_column_for_each_explainer(record):
    lines = explainers.TABLES["pearson"]()
    assert lines[0] == f"| model | {' | '.join(f'`{name}`' for name in explainers.SEEN_BY)} |"
    cells = " | ".join(f"{k / 10:.3f}" for k in range(len(explainers.SEEN_BY)))
    assert f"| disguised from `gradcam++` | {cells} |" in lines
    assert "| clean model (not run) | | | | | | | |" in lines
    assert len(lines) == 2 + len(explainers.TABLE)


def test_every_table_can_be_filled_in_and_is_on_the_page(record):
    text = (pages.ROOT / explainers.PAGE).read_text()
    for name, table in explainers.TABLES.items():
        assert len(table()) > 2 and f"<!-- table: explainers.{name} -->" in text
