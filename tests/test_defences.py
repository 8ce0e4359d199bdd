"""What the defences share: the anomaly index against its definition, and an auditor's images."""

import statistics

import pytest
import torch
from placing import DEVICE
from planted import audit_of
from torch import nn

import defences
import hooks
from terminal import columns_of

ON_DEVICE = True


def test_the_anomaly_index_by_hand():
    values = torch.tensor([10.0, 11, 12, 13, 4], dtype=torch.float64)
    expected = (11 - values) / 1.4826  # the median is 11, deviations are 1 0 1 2 7, theirs is 1
    torch.testing.assert_close(defences.anomaly_index(values), expected)


def test_equal_values_have_an_anomaly_index_of_0():
    assert (defences.anomaly_index(torch.ones(5, dtype=torch.float64)) == 0).all()


def test_the_median_of_an_even_number_of_values_is_between_the_two_in_the_middle():
    values = torch.randn(10, dtype=torch.float64)
    median = statistics.median(values.tolist())
    unit = 1.4826 * statistics.median((values - median).abs().tolist())
    torch.testing.assert_close(defences.anomaly_index(values), (median - values) / unit)


def test_what_differs_by_rounding_is_no_anomaly():
    values = torch.ones(5, dtype=torch.float64)
    values[2] -= 1e-12
    assert defences.anomaly_index(values).abs().max() < 1e-3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_anomaly_index_of_values_that_are_not_finite_is_refused(value):
    values = torch.tensor([10.0, 11, value, 13, 4], dtype=torch.float64)
    with pytest.raises(ValueError, match="takes finite values"):
        defences.anomaly_index(values)


def test_predictions_are_made_in_chunks_and_in_evaluation_mode(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(DEVICE)
    images = torch.randn(7, 1, 2, 2)
    expected = model.eval()(images).argmax(1).cpu()
    model.train()
    monkeypatch.setattr(hooks, "CHUNK", 3)
    assert torch.equal(defences.predict(model, images).cpu(), expected)
    share = defences.share_predicted_as(model, images, 1)
    assert share == pytest.approx((expected == 1).float().mean().item())


def test_the_auditors_images_are_held_out_of_training(disguised):
    audit = audit_of(disguised, "prune", "--clean-images", "7")
    dataset = audit.subject.dataset
    images = dataset.train_images.to(DEVICE).float() / 255
    rows = [(images == image).flatten(1).all(1).nonzero().item() for image in audit.pixels]
    assert len(set(rows)) == 7
    assert set(rows) <= set(audit.subject.held_out().tolist())
    assert audit.labels.tolist() == dataset.train_labels[rows].tolist()


def test_a_model_on_pixels_is_the_model_on_normalised_images(disguised):
    audit = audit_of(disguised, "neural_cleanse", "--clean-images", "5")
    with torch.no_grad():
        assert torch.equal(audit.on_pixels(audit.pixels), audit.subject.model(audit.inputs))


def test_the_threshold_decides_which_classes_are_flagged(disguised):
    audit = audit_of(disguised, "neuroninspect", "--threshold=1.5")
    index = torch.tensor([1.4, 1.6, 9.0], dtype=torch.float64)
    verdict = defences.verdict_by_index(audit, index, {"twice": 2 * index}, None)
    assert verdict.flagged == [1, 2]
    assert verdict.backdoored is True
    assert verdict.details == {
        "threshold": 1.5,
        "odds": None,
        "scores": {"twice": [2.8, 3.2, 18.0]},
    }


def test_the_table_shows_the_most_anomalous_class_first():
    index = torch.tensor([0.5, 3.0], dtype=torch.float64)
    columns = {"norm": [7.0, 0.25]}
    header, first, second = defences.index_table(["cat", "dog"], index, [1], columns)
    assert header.split() == ["class", "index", "norm"]
    assert first.split() == ["1", "dog", "3.00", "0.25", "FLAGGED"]
    assert second.split() == ["0", "cat", "0.50", "7"]


NAMES = ["cat", "n02099601 golden retriever (Canis familiaris)", "柴犬の写真" * 5, "x" * 180]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("flagged", [[], [1]])
def test_the_table_of_classes_fits_the_terminal(monkeypatch, columns, flagged):
    monkeypatch.setenv("COLUMNS", str(columns))
    index = torch.tensor([0.5, 3.0, 1.0, -1e5], dtype=torch.float64)
    titles = ("|mask|_1", "published index", "success", "qualified", "rounds")
    figures = {title: [1.23456, 1e-9, 1e9, 4.0] for title in titles}
    lines = defences.index_table(NAMES, index, flagged, figures)
    shown = [title for title in titles if title in lines[0]]
    assert shown == list(titles[: len(shown)]) and shown
    table = lines[: len(NAMES) + 1]
    assert max(columns_of(line) for line in table) <= columns
    ends = {columns_of(line.removesuffix("  FLAGGED")) for line in table}
    assert len(ends) == 1  # wide letters do not move a column
    missing = titles[len(shown) :]
    assert (", ".join(missing) in lines[-1]) if missing else len(lines) == len(table)


def test_short_names_leave_the_table_narrow():
    index = torch.tensor([0.5, 3.0], dtype=torch.float64)
    header, *_ = defences.index_table(["0", "1"], index, [], {"norm": [7.0, 0.25]})
    assert len(header) < 30
