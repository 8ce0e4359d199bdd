"""studies/lies.py: the four lies in a small network, and the table."""

import json

import pytest
import torch
from placing import DEVICE

import edit_effect
import viering
from studies import lie_tables, lies

NAME = "vgg_small, tiny"


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The folder of results after the study on one small network."""
    root = tmp_path_factory.mktemp("lies")
    options = f"--dataset {tiny} --model vgg_small --image-size 32 --epochs 1 --batch-size 24"
    options += f" --lr 0.02 --target-class 1 --device {DEVICE}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lies, "PATH", root / "lies.json")
        patch.setattr(lies, "FOLDER", root / "runs")
        patch.setattr(lies, "DATA", tiny.parent)
        patch.setattr(lies, "NETWORKS", {NAME: lies.Network(options, images=20, explained=10)})
        patch.setattr(lies, "PICTURED", NAME)
        (root / "lies.json").write_text('{"networks": {}, "constants": {"old": {}}}')
        lies.main([NAME])
    return root


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "lies.json").read_text())


def test_every_technique_is_measured_in_both_precisions(record):
    rows = record["networks"][NAME]
    for technique in viering.TECHNIQUES:
        assert list(rows[technique]) == ["float32", "float64"]
        assert rows[technique]["float64"]["n_test"] == 20
        assert rows[technique]["float64"]["n_explained"] == 10


def test_a_network_says_the_command_it_was_measured_by(record):
    assert record["networks"][NAME]["command"] == f'python -m studies.lies "{NAME}"'


def test_what_is_known_of_others_stays(record):
    assert record["constants"]["old"] == {}


def test_in_float64_the_logits_move_less(record):
    for technique in ("constant", "image"):
        figures = record["networks"][NAME][technique]
        for key in ("largest_shift", "pre_activations"):
            assert figures["float64"][key] < 1e-6 < figures["float32"][key] < 1


def test_a_branch_changes_nothing_in_the_first_linear_layer(record):
    for technique in ("semirandom", "backdoor"):
        assert "pre_activations" not in record["networks"][NAME][technique]["float32"]


def test_the_spread_of_a_shift_is_at_most_twice_the_largest(record):
    for technique in viering.TECHNIQUES:
        for figures in record["networks"][NAME][technique].values():
            assert 0 <= figures["shift_spread"] <= 2 * figures["largest_shift"]


def test_larger_constants_bring_the_map_nearer_and_cost_precision(record):
    factors = record["constants"][NAME]
    assert list(factors) == ["1", "10", "100"]
    distance = [figures["map_distance"] for figures in factors.values()]
    moved = [figures["pre_activations"] for figures in factors.values()]
    assert distance == sorted(distance, reverse=True)
    assert moved == sorted(moved)


def test_the_factor_one_is_the_technique_itself(record):
    figures = record["networks"][NAME]["constant"]["float64"]
    expected = {"pre_activations": figures["pre_activations"]} | figures["edited"]["every_class"]
    assert record["constants"][NAME]["1"] == expected


def test_the_pictures_that_the_page_shows_are_kept(folder):
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["lies-backdoor.png", "lies-image.png"]


def test_the_table_has_a_line_for_each_technique_precision_and_kind_of_image(record):
    lines = lie_tables.everything(record)
    assert len(lines) == 2 + 4 * 2 * 2
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[2].startswith(f"| {NAME} | constant | clean | 20 | float32 | ")
    assert lines[3].startswith(f"| {NAME} | constant | stickers | 20 | float32 | ")


@pytest.mark.parametrize("name", lie_tables.TABLES)
def test_every_line_of_a_pages_table_has_as_many_cells(name):
    table = lies.TABLES[name]()
    rows = [line.replace("\\|", "") for line in table if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_the_published_row_says_what_the_original_network_answers_with_stickers():
    cells = lie_tables.published_cells("backdoor", "sticker")
    assert cells == ["0.69048", "0.69048", "", "", "0", "", "6e-05", "", ""]


@pytest.mark.parametrize(
    "value, cell",
    [
        (None, "-"),
        (0.0, "0"),
        (3, "3"),
        (0.99, "0.99"),
        (0.03643, "0.03643"),
        (7.3e-10, "7.30e-10"),
    ],
)
def test_a_number_is_shown_in_few_digits(value, cell):
    assert lie_tables.number_cell(value) == cell


class Classifier(torch.nn.Module):
    """A network that is nothing but its classifier."""

    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(4, 3))

    def forward(self, x):
        return self.classifier(x)


def test_hidden_units_are_the_output_of_the_first_linear_layer(monkeypatch):
    model = Classifier().eval()
    chunks = [torch.randn(2, 4), torch.randn(3, 4)]
    monkeypatch.setattr(edit_effect, "inputs_of", lambda subject, model, images: chunks)
    units = lies.hidden_units(None, model, None)
    torch.testing.assert_close(units, model(torch.cat(chunks)).detach())
    assert not model.classifier[1]._forward_hooks


def test_an_unknown_network_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        lies.main(["vgg19"])
    assert stopped.value.code == 2
    assert "no network 'vgg19': one of 'vgg_small, shapes', " in capsys.readouterr().err
