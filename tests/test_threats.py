"""The study of the two threats: what two scores choose alike, and tables of a record by hand."""

import json
from types import SimpleNamespace

import pytest
import torch

from studies import threat_tables, threats

LABELS = torch.arange(1000) % 10


def subject_of(pool):
    """A subject of class 3, images 0 to 99 held out, whose scorer gave these scores [P, 2]."""
    return SimpleNamespace(
        dataset=SimpleNamespace(train_labels=LABELS),
        target_class=3,
        held_out=lambda: torch.arange(100),
        checkpoint={"selection": {"pool": pool}},
    )


def test_equal_orders_choose_the_same_images():
    scores = torch.rand(810, dtype=torch.float64)
    pool = torch.stack([scores, scores.log()], 1)
    assert threats.overlap_of(subject_of(pool)) == {"hardest": 55, "capped": 55}


def test_opposite_orders_choose_none_alike():
    scores = torch.rand(810, dtype=torch.float64)
    pool = torch.stack([scores, -scores], 1)
    assert threats.overlap_of(subject_of(pool)) == {"hardest": 0, "capped": 0}


def test_what_is_chosen_alike_is_counted():
    first = torch.arange(810.0)
    second = first.clone()
    second[-20:] = -1.0  # the other score does not see these
    pool = torch.stack([first, second], 1)
    assert threats.overlap_of(subject_of(pool))["hardest"] == 55 - 20


def test_scores_of_other_images_than_may_be_poisoned_are_refused():
    with pytest.raises(ValueError, match="809 scores of 810 images"):
        threats.overlap_of(subject_of(torch.rand(809, 2)))


def test_the_cap_counts_with_the_images_own_classes():
    """By the first score class 7 is hardest, by the second class 8: each gives its cap of 13."""
    is_eligible = (LABELS != 3) & (torch.arange(1000) >= 100)
    labels = LABELS[is_eligible]
    rest = torch.arange(len(labels)) / 1e4  # the others in one order
    pool = torch.stack([(labels == 7) + rest, (labels == 8) + rest], 1).double()
    found = threats.overlap_of(subject_of(pool))
    assert found["hardest"] == 0
    assert found["capped"] == alike_by_hand(labels, rest)


def alike_by_hand(labels, rest):
    """How many of 55 two orders share, each with one class in front, at most 13 of a class."""
    chosen = []
    for favoured in (7, 8):
        order = sorted(range(len(labels)), key=lambda k: (labels[k] != favoured, -rest[k]))
        taken, counts = [], dict.fromkeys(range(10), 0)
        for k in order:
            label = int(labels[k])
            if counts[label] < 13 and len(taken) < 55:
                taken.append(k)
                counts[label] += 1
        chosen.append(set(taken))
    return len(set.intersection(*chosen))


def row_of(values, **more):
    """A recorded row of runs with these success rates, one a seed."""
    runs = [
        {
            "seed": seed,
            "attack_success_rate": value,
            "clean_accuracy": 0.9,
            "validation_success": [0.1, value],
            "poisons_by_class": {"cat": 30, "dog": 10},
            "hardware": "a processor, 1 thread",
            "commit": "abc1234",
            **more,
        }
        for seed, value in enumerate(values)
    ]
    keys = ("attack_success_rate", "clean_accuracy", *more)
    summary = {}
    for key in keys:
        found = torch.tensor([float(run[key]) for run in runs])
        summary[key] = {"mean": float(found.mean()), "sd": float(found.std())}
    return {"runs": runs, "summary": summary, "seeds": list(range(len(values)))}


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A record by hand, with the comparisons that the study makes of it."""
    scored = {"selection_epochs": 6, "selection_cost": 0.2}
    rows = {"pilot 0.0008": row_of([0.7, 0.6])}
    rows |= {"random": row_of([0.5, 0.7]), "rd-global": row_of([0.6, 0.9], **scored)}
    for k, name in enumerate([*threats.BOTH, *threats.HARDEST]):
        rows[name] = row_of([0.05 * k, 0.05 * k + 0.02])
    path = tmp_path / "threats.json"
    path.write_text(json.dumps(rows))
    study = threats.Study("threats", threats.TABLE, tmp_path)
    study.path = path
    threats.write_comparisons(study)
    monkeypatch.setattr(threat_tables, "RECORD", path)
    monkeypatch.setattr(threat_tables, "PAIRED", tmp_path / "threats-paired.json")
    return rows


def test_a_selection_is_shown_with_its_difference_to_random_images(record):
    lines = threat_tables.selections()
    assert lines[2].startswith("| `random` | 2 | 0.600 (0.141) | 0.500, 0.700 |")
    # Differences of 0.1 and 0.2: mean 0.15, half the interval 12.706 x 0.0707 / sqrt 2 = 0.635.
    assert "| +0.150 (-0.485 to +0.785) |" in lines[3]
    assert lines[3].endswith("| 0.900 (0.000) | 6 | 0.200 (0.000) |")
    assert len(lines) == 6  # rows that were not run have no line


def test_the_epochs_and_the_classes_are_of_all_runs(record):
    assert threat_tables.held_out()[2] == "| `random` | 2 | 0.10 | 0.60 |"
    assert threat_tables.chosen_classes()[2] == "| `random` | 2 | 60 | 20 |"
    assert threat_tables.pilot()[2].startswith("| 0.0008 | 40 | 0, 1 | 0.650")


def test_both_threats_stand_side_by_side(record):
    lines = threat_tables.threats()
    assert lines[2].startswith("| 20 | 2 | 0.010 (0.014) | 0.060 (0.014) | +0.050 (+0.050 to")
    assert lines[3].startswith("| 100 | 2 | 0.110 (0.014) | 0.160 (0.014) | +0.050")


def test_five_images_have_a_line_a_threat(record):
    lines = threat_tables.hardest()
    assert len(lines) == 2 + len(threats.THREATS) + 2
    # In the record random, rd-global, rd-classes have 0.21, 0.26 and 0.31 under `data`.
    values = "0.210 (0.014) | 0.310 (0.014) | 0.260 (0.014)"
    assert lines[2].startswith(f"| `data` | 2 | {values} | +0.050 (")
    assert "| -0.050 (" in lines[2]
    assert lines[3].startswith("| `training --oversample 6` | 2 | 0.360 (0.014)")


def test_without_checkpoints_nothing_is_said_of_the_overlap(record, tmp_path):
    assert not (tmp_path / "threats-overlap.json").exists()


@pytest.mark.parametrize("of, minus", threats.PAIRS)
def test_every_run_of_a_pair_has_its_partner(of, minus):
    """The second row has every seed of the first."""
    of, minus = (threats.TABLE[name] for name in (of, minus))
    assert of.first_seed == minus.first_seed and of.seeds <= minus.seeds


def test_the_pilots_seed_is_none_of_the_comparison():
    seeds = {row.first_seed + k for row in threats.CIFAR10.values() for k in range(row.seeds)}
    assert threats.PILOT_SEED not in seeds


def test_rows_that_were_not_run_have_no_line(tmp_path, monkeypatch):
    (tmp_path / "threats.json").write_text(json.dumps({"random": row_of([0.5, 0.7])}))
    for name in ("RECORD", "PAIRED"):
        path = {"RECORD": "threats.json", "PAIRED": "none.json"}[name]
        monkeypatch.setattr(threat_tables, name, tmp_path / path)
    assert len(threat_tables.threats()) == len(threat_tables.hardest()) == 4
