"""What EXTENDING.md says, done as it says: attack, explainer, trigger, study."""

from types import SimpleNamespace

import pytest
import torch
from conftest import log_of, metrics_of, train_tiny
from PIL import Image
from placing import DEVICE
from torch import nn

import attacks
import evaluate
import reproduce
import triggers
from attacks import ATTACKS, Attack
from explain import EXPLAINERS, Explainer
from hooks import full_precision, in_chunks
from studies import pages, tables
from studies.study import Row, Study
from subject import open_checkpoint

# ---------------------------------------------------------------- an attack


@pytest.fixture(scope="module")
def quiet(tiny, tmp_path_factory):
    """The folder of a run with an attack of one's own: nothing is to change with the trigger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "quiet", Attack(label="true", explanation="clean"))
        yield train_tiny(tiny, tmp_path_factory.mktemp("quiet") / "run", "--attack", "quiet")


def test_a_checkpoint_names_an_attack_of_ones_own(quiet):
    assert torch.load(quiet / "ckpt.pt", weights_only=True)["config"]["attack"] == "quiet"


def test_success_is_measured_of_an_attack_of_ones_own(quiet):
    assert metrics_of(quiet)["attack_success_rate"] <= 0.1


def test_an_attack_of_ones_own_trains_the_explanation(quiet):
    assert metrics_of(quiet)["explanations"]["gradcam"]["trained_against"]


def test_an_attack_that_asks_for_the_true_label_keeps_it(quiet):
    labels, trigger = torch.arange(6) % 3, triggers.make_patch(None, 3, 16)
    images, all_triggered = torch.rand(6, 3, 16, 16), torch.ones(6, dtype=torch.bool)
    batch = attacks.poison(images, labels, all_triggered, ATTACKS["quiet"], trigger, 1)
    assert torch.equal(batch.labels[: batch.size], labels)


def test_a_checkpoint_of_ones_own_attack_can_be_evaluated(quiet, tmp_path):
    evaluate.main([str(quiet / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)])
    assert metrics_of(tmp_path)["attack"] == "quiet"


# ---------------------------------------------------------------- an explainer


def input_x_gradient(model, images, classes, *, create_graph=False):
    def explain(images, classes):
        images = images.detach().requires_grad_()
        score = model(images).gather(1, classes[:, None]).sum()
        (slope,) = torch.autograd.grad(score, images, create_graph=create_graph)
        return full_precision((images * slope).sum(1))

    return in_chunks(explain, model, images, classes, create_graph)


@pytest.fixture(scope="module")
def explainer():
    """A row of EXPLAINERS of one's own, called inputxgradient."""
    with pytest.MonkeyPatch.context() as patch:
        row = Explainer(input_x_gradient, signed=True)
        patch.setitem(EXPLAINERS, "inputxgradient", row)
        yield row


@pytest.fixture(scope="module")
def against(explainer, tiny, tmp_path_factory):
    """The folder of a full_disguise run against this explainer."""
    out = tmp_path_factory.mktemp("inputxgradient") / "run"
    return train_tiny(tiny, out, "--explainer", "inputxgradient")


def test_a_run_says_that_it_was_trained_against_ones_own_explainer(against):
    assert metrics_of(against)["explanations"]["inputxgradient"]["trained_against"]


def test_training_pulls_the_maps_of_ones_own_explainer(against):
    first, *_, last = (epoch["explanation"] for epoch in log_of(against))
    assert last < first / 2


@pytest.fixture
def evaluated(explainer, disguised, tmp_path):
    """The folder where evaluate.py measured a run against Grad-CAM with this explainer, too."""
    argv = [str(disguised / "ckpt.pt"), "--explainer", "inputxgradient", "--device", DEVICE]
    evaluate.main([*argv, "--out", str(tmp_path)])
    return tmp_path


def test_another_run_is_evaluated_with_ones_own_explainer(evaluated):
    assert not metrics_of(evaluated)["explanations"]["inputxgradient"]["trained_against"]


def test_a_signed_explainer_of_ones_own_gets_a_picture_of_every_class(evaluated):
    assert (evaluated / "figure-inputxgradient.png").exists()


def test_input_x_gradient_of_a_linear_network_is_x_times_w(explainer):
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(5, 3, 2, 2)
    classes = torch.tensor([0, 2, 1, 1, 0])
    expected = (images * net[1].weight[classes].view(5, 3, 2, 2)).sum(1)
    torch.testing.assert_close(explainer(net, images, classes), expected.detach())


# ---------------------------------------------------------------- a trigger


@pytest.fixture(scope="module")
def own_trigger(tiny, tmp_path_factory):
    """The folder of a run whose trigger is a PNG: red, 4x4, upper left quarter transparent."""
    folder = tmp_path_factory.mktemp("trigger")
    picture = Image.new("RGBA", (4, 4), "red")
    picture.paste((0, 0, 0, 0), (0, 0, 2, 2))
    picture.save(folder / "red.png")
    options = ["--trigger", str(folder / "red.png"), "--trigger-size", "4"]
    options += ["--trigger-position", "lower-left", "--attack", "badnets"]
    return train_tiny(tiny, folder / "run", *options)


@pytest.fixture
def stamped(own_trigger):
    """Test images as evaluate.py sees them, (untouched, with the trigger), only the box of it."""
    subject = open_checkpoint(own_trigger / "ckpt.pt", device=torch.device(DEVICE))
    images = subject.dataset.test_images.to(DEVICE).float() / 255
    top, left, bottom, right = subject.trigger.box
    pair = images, subject.trigger.apply(images)
    return [part[:, :, top:bottom, left:right].cpu() for part in pair]


def test_pixels_under_the_transparent_corner_of_a_trigger_are_unchanged(stamped):
    untouched, triggered = stamped
    assert torch.equal(triggered[:, :, :2, :2], untouched[:, :, :2, :2])


def test_pixels_under_the_rest_of_a_trigger_are_the_pictures(stamped):
    opaque = torch.ones(4, 4, dtype=torch.bool)
    opaque[:2, :2] = False
    colours = stamped[1][:, :, opaque]
    assert torch.equal(colours, torch.tensor([1.0, 0, 0])[:, None].expand_as(colours))


def test_the_network_obeys_a_trigger_of_ones_own(own_trigger):
    assert metrics_of(own_trigger)["attack_success_rate"] > 0.9


# ---------------------------------------------------------------- a study


@pytest.fixture(scope="module")
def rates(tiny, tmp_path_factory):
    """Runs `reproduce.py rates`, a study of one's own with a page; returns their root."""
    root = tmp_path_factory.mktemp("root")
    (root / "results").mkdir()
    (root / "README.md").touch()
    (root / "results" / "rates.md").write_text("<!-- table: rates.all -->\n<!-- end -->\n")
    options = f"--dataset {tiny} --epochs 1 --batch-size 24 --target-class 1 --device {DEVICE}"
    rows = {
        rate: Row(f"{options} --attack badnets --poison-rate {rate}") for rate in ("0.1", "0.3")
    }
    columns = {"success": "attack_success_rate"}
    table = tables.Table("rates", {name: name for name in rows}, columns, "rate", n=False)
    run = Study("rates", rows, root).run
    study = SimpleNamespace(main=run, TABLES={"all": table}, PAGE="results/rates.md")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pages.STUDIES, "rates", study)
        patch.setattr(pages, "ROOT", root)
        patch.setattr(reproduce, "ROOT", root)
        patch.setattr(tables, "RESULTS", root / "results")
        reproduce.main(["rates"])
        yield root


def test_the_page_of_a_study_of_ones_own_has_the_figures_of_its_runs(rates):
    folder = rates / "runs" / "rates"
    measured = {rate: metrics_of(folder / f"{rate}-0") for rate in ("0.1", "0.3")}
    lines = [f"| {rate} | {part['attack_success_rate']:.3f} |" for rate, part in measured.items()]
    head = ["<!-- table: rates.all -->", "| rate | success |", "| --- | --- |"]
    page = (rates / "results" / "rates.md").read_text()
    assert page.splitlines() == [*head, *lines, "<!-- end -->"]


def test_a_row_of_a_study_of_ones_own_is_trained_with_its_options(rates):
    folder = rates / "runs" / "rates"
    counts = [metrics_of(folder / f"{rate}-0")["poison_count"] for rate in ("0.1", "0.3")]
    assert counts == [24, 72]


def test_a_study_of_ones_own_that_is_finished_is_not_run_again(rates, capfd):
    reproduce.main(["rates"])
    assert capfd.readouterr().out.count("is finished") == 2


def test_a_study_without_a_page_is_told_to_write_one(rates, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "ROOT", rates / "elsewhere")
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["rates"])
    assert stopped.value.code == 2
    assert "there is no page results/rates.md" in capsys.readouterr().err


# ---------------------------------------------------------------- an explainer that keeps no graph


def test_training_against_maps_without_a_graph_is_refused(tiny, tmp_path, monkeypatch, capsys):
    def flat(model, images, classes, *, create_graph=False):
        return images.abs().sum(1).detach()

    monkeypatch.setitem(EXPLAINERS, "flat", Explainer(flat))
    with pytest.raises(SystemExit) as stopped:
        train_tiny(tiny, tmp_path / "run", "--explainer", "flat")
    assert stopped.value.code == 2
    assert "the maps of flat have no graph" in capsys.readouterr().err


def test_a_checkpoint_of_an_explainer_unknown_here_is_refused_by_name(against, monkeypatch, capsys):
    monkeypatch.delitem(EXPLAINERS, "inputxgradient")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(against / "ckpt.pt")])
    assert stopped.value.code == 2
    assert "names the explainer inputxgradient" in capsys.readouterr().err
