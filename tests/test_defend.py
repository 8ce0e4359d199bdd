"""defend.py's command line on real checkpoints: what it writes, refuses, and may know."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import train_tiny
from PIL import Image
from placing import DEVICE
from planted import audit_of

import checkpoints
import defences
import defend
import evaluate
import hooks
from defences import batchnorm, neural_cleanse, neuroninspect, prune
from edited import REPAIRS

QUICK = {  # options by which a search takes a second
    "neural_cleanse": ["--rounds", "6", "--round-images", "16"],
    "prune": ["--rounds", "6", "--round-images", "16"],
    "finetune": ["--epochs", "2"],
}
COMPARES_CLASSES = [name for name, defence in defend.METHODS.items() if defence.compares_classes]


@pytest.fixture(scope="module")
def backdoored(tiny, tmp_path_factory):
    """The folder of a badnets run; what it held before any audit is in ../copy."""
    folder = tmp_path_factory.mktemp("backdoored") / "run"
    train_tiny(tiny, folder, "--attack", "badnets", "--epochs", "6")
    shutil.copytree(folder, folder.parent / "copy")
    return folder


@pytest.fixture(scope="module", autouse=True)
def masks_qualify_early():
    """A mask qualifies that turns a fifth of its images: a few rounds are enough for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neural_cleanse, "SUCCESS", 0.2)
        yield


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def audit(folder, method, out, capsys, *options):
    """The JSON that a command line prints of a run's checkpoint."""
    argv = [method, str(folder / "ckpt.pt"), "--device", DEVICE, "--out", str(out), "--json"]
    defend.main([*argv, *QUICK.get(method, []), *options])
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def verdict_of(backdoored, tmp_path_factory):
    """verdict_of(method) -> (verdict, folder): of the backdoored run, audited once a method."""
    made = {}

    def verdict_of(method):
        if method not in made:
            out = tmp_path_factory.mktemp(method)
            argv = [method, str(backdoored / "ckpt.pt"), "--device", DEVICE, "--out", str(out)]
            defend.main([*argv, *QUICK.get(method, [])])
            made[method] = json.loads((out / "verdict.json").read_text()), out
        return made[method]

    return verdict_of


def refused(argv, capsys):
    """The last line on standard error of a command line that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        defend.main(argv)
    assert stopped.value.code == 2
    *header, line = capsys.readouterr().err.splitlines()
    assert not any("defend.py" in other for other in header)
    return line


# ---------------------------------------------------------------- what it writes


@pytest.mark.parametrize("method", ["neuroninspect", "disagreement", "inspect"])
def test_what_is_printed_as_json_is_what_is_written(method, backdoored, tmp_path, capsys):
    verdict = audit(backdoored, method, tmp_path, capsys)
    assert verdict == json.loads((tmp_path / "verdict.json").read_text())


@pytest.mark.parametrize("method", defend.METHODS)
def test_a_verdict_has_its_keys(method, verdict_of):
    verdict, _ = verdict_of(method)
    assert verdict["method"] == method
    assert verdict["seconds"] >= 0
    assert verdict["clean_images"] == 24
    assert {"backdoored", "flagged", "index", "before", "after", "settings"} <= verdict.keys()


@pytest.mark.parametrize("method", ["neuroninspect", "neural_cleanse", *REPAIRS])
def test_a_method_with_a_picture_leaves_a_figure(method, verdict_of):
    _, out = verdict_of(method)
    assert (out / "figure.png").exists()


def test_neural_cleanse_leaves_its_patches(verdict_of):
    verdict, out = verdict_of("neural_cleanse")
    most_anomalous = max(verdict["index"], key=lambda k: verdict["index"][k])
    classes = {*verdict["flagged"], int(most_anomalous)}
    written = {path.name for path in out.glob("recovered-*")}
    assert written == {f"recovered-{k}.png" for k in classes}


def test_further_pictures_of_a_verdict_are_written(tmp_path):
    picture = Image.new("RGBA", (2, 3), (10, 20, 30, 40))
    defend.write({}, None, tmp_path / "out", {"mine.png": picture})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"verdict.json", "mine.png"}
    assert Image.open(tmp_path / "out" / "mine.png").getpixel((1, 2)) == (10, 20, 30, 40)


def test_inspect_leaves_no_figure(verdict_of):
    _, out = verdict_of("inspect")
    assert not (out / "figure.png").exists()


@pytest.mark.parametrize("method", defend.METHODS)
def test_the_audited_run_is_left_alone(method, verdict_of, backdoored):
    verdict_of(method)
    assert not list(backdoored.glob("defend-*"))
    assert files_of(backdoored) == files_of(backdoored.parent / "copy")


def test_the_table_ends_with_where_it_was_written(backdoored, tmp_path, capsys):
    argv = ["inspect", str(backdoored / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)]
    defend.main(argv)
    assert capsys.readouterr().out.splitlines()[-1] == f"Written: {tmp_path}"


@pytest.mark.parametrize("method", COMPARES_CLASSES)
def test_every_class_has_an_index(method, verdict_of):
    verdict, _ = verdict_of(method)
    assert set(verdict["index"]) == {"0", "1", "2"}
    assert verdict["threshold"] is None


def test_a_flagged_class_means_backdoored(verdict_of):
    verdict, _ = verdict_of("neuroninspect")
    assert verdict["backdoored"] == bool(verdict["flagged"])


def test_neuroninspects_index_is_the_largest_over_the_levels_of_noise(verdict_of):
    verdict, _ = verdict_of("neuroninspect")
    levels = [verdict["scores"][f"noise {level:g}"] for level in neuroninspect.NOISE]
    assert list(verdict["index"].values()) == np.max(levels, 0).tolist()
    assert len(verdict["features"]["6"]["smooth"]) == 3


def test_neuroninspect_takes_other_levels_of_noise(backdoored, tmp_path, capsys):
    verdict = audit(backdoored, "neuroninspect", tmp_path, capsys, "--noise", "0")
    assert verdict["scores"].keys() == {"noise 0"}


@pytest.mark.parametrize(
    "threshold, flagged, answer",
    [
        ("-1e9", 3, "Above -1e+09: '0', '1', '2'; the highest index"),
        ("1e9", 0, "Above 1e+09: none; the highest index"),
    ],
)
def test_the_threshold_decides(threshold, flagged, answer, backdoored, tmp_path, capsys):
    argv = ["neuroninspect", str(backdoored / "ckpt.pt"), "--device", DEVICE]
    options = [f"--threshold={threshold}", "--clean-images", "6", "--out", str(tmp_path)]
    defend.main([*argv, *options])
    printed = capsys.readouterr().out
    assert answer in printed
    assert printed.count("FLAGGED") == flagged


def test_without_a_threshold_clean_models_are_the_yardstick(backdoored, clean, tmp_path, capsys):
    argv = ["neuroninspect", str(backdoored / "ckpt.pt"), "--device", DEVICE]
    argv += ["--clean-images", "6", "--out", str(tmp_path), "--calibrate", str(clean)]
    defend.main(argv)
    printed = capsys.readouterr()
    said = " ".join(printed.out.split())
    note = "1 clean model given: beside fewer than 9 no index by itself stands out."
    assert note in " ".join(printed.err.split())
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    odds = verdict["odds"]
    assert odds["clean_models"] == 1
    assert odds["chance"] == (odds["as_far"] + 1) / 2
    assert verdict["backdoored"] is False  # of one clean model nothing follows
    assert "Nothing stands out: the highest index" in said
    assert "of 1 clean models given" in said


def test_a_backdoored_model_calibrates_nothing(backdoored, tmp_path, capsys):
    argv = ["neuroninspect", "--calibrate", str(backdoored / "ckpt.pt")]
    assert "is no clean model" in refused(
        [*argv[:1], str(backdoored / "ckpt.pt"), *argv[1:]], capsys
    )


def test_by_a_table_of_clean_models(backdoored, tmp_path, capsys):
    argv = ["neuroninspect", str(backdoored / "ckpt.pt"), "--device", DEVICE]
    defend.main([*argv, "--clean-images", "6", "--out", str(tmp_path)])
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["odds"]["clean_models"] == 30  # of all data: ours has no such set
    assert verdict["odds"]["word"] in " ".join(capsys.readouterr().out.split()).lower()


def test_the_published_threshold_comes_with_its_false_alarms(backdoored, tmp_path, capsys):
    argv = ["neuroninspect", str(backdoored / "ckpt.pt"), "--device", DEVICE]
    defend.main([*argv, "--threshold", "2", "--clean-images", "6", "--out", str(tmp_path)])
    assert defend.CHANCE in " ".join(capsys.readouterr().out.split())


def test_too_few_patches_are_printed_as_no_verdict(backdoored, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(neural_cleanse, "SUCCESS", 1.1)
    argv = ["neural_cleanse", str(backdoored / "ckpt.pt"), "--device", DEVICE]
    defend.main([*argv, *QUICK["neural_cleanse"], "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "0 of 3 classes" in printed
    assert "No verdict" in printed


# ---------------------------------------------------------------- settings


def settings_of(method, *options):
    return defend.settings(defend.parse([method, "ckpt.pt", "--device", DEVICE, *options]))


@pytest.mark.parametrize("method", defend.METHODS)
def test_the_settings_are_in_the_verdict(method, verdict_of):
    verdict, _ = verdict_of(method)
    settings = settings_of(method, *QUICK.get(method, []))
    assert verdict["settings"] == json.loads(json.dumps(settings))


@pytest.mark.parametrize("method", defend.METHODS)
def test_the_settings_are_of_the_method_alone(method):
    settings = settings_of(method)
    assert (settings["clean_images"], settings["seed"]) == (500, 0)
    assert ("samples" in settings) == (method == "neuroninspect")
    assert ("rounds" in settings) == (method in ("neural_cleanse", "prune"))
    assert ("explainers" in settings) == (method == "disagreement")


def test_another_constant_is_another_setting(monkeypatch):
    before = settings_of("neuroninspect")
    monkeypatch.setattr(neuroninspect, "SAMPLES", 9)
    assert settings_of("neuroninspect") == before | {"samples": 9}


# ---------------------------------------------------------------- repairs


def test_the_methods_that_repair_are_those_a_checkpoint_can_hold():
    repairs = {name for name, defence in defend.METHODS.items() if defence.repairs}
    assert repairs == set(REPAIRS)


@pytest.mark.parametrize("method", REPAIRS)
def test_before_is_what_training_measured(method, verdict_of, backdoored):
    verdict, _ = verdict_of(method)
    metrics = json.loads((backdoored / "metrics.json").read_text())
    assert verdict["before"]["attack_success_rate"] == metrics["attack_success_rate"]


@pytest.mark.parametrize("method", REPAIRS)
def test_evaluate_py_reads_the_repaired_network(method, verdict_of, tmp_path):
    verdict, out = verdict_of(method)
    evaluate.main([str(out / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["attack_success_rate"] == verdict["after"]["attack_success_rate"]
    assert metrics["edit"]["technique"] == method


@pytest.mark.parametrize("method", REPAIRS)
def test_a_repaired_network_is_not_repaired_again(method, verdict_of, capsys):
    _, out = verdict_of("cfn")
    capsys.readouterr()
    line = refused([method, str(out / "ckpt.pt"), "--device", DEVICE], capsys)
    assert "has been edited since it was trained" in line


@pytest.fixture(scope="module")
def deepshap_repaired(tiny, tmp_path_factory):
    """The verdict of cfn on a disguise against DeepSHAP, which has no rule for such a network."""
    folder = tmp_path_factory.mktemp("deepshap") / "run"
    train_tiny(tiny, folder, "--explainer", "deepshap", "--epochs", "1")
    defend.main(["cfn", str(folder / "ckpt.pt"), "--device", DEVICE])
    assert (folder / "defend-cfn" / "ckpt.pt").exists()
    return json.loads((folder / "defend-cfn" / "verdict.json").read_text())


def test_an_explainer_that_no_longer_works_is_left_out(deepshap_repaired):
    before = deepshap_repaired["before"]["explanations"]
    after = deepshap_repaired["after"]["explanations"]
    assert before["deepshap"]["trained_against"]
    assert "deepshap" not in after
    assert not after["gradcam"]["trained_against"]


def test_batch_norm_is_measured_in_every_regime(deepshap_repaired):
    assert set(deepshap_repaired["regimes"]) == set(batchnorm.REGIMES)


# ---------------------------------------------------------------- options of a method


@pytest.mark.parametrize(
    "method, option",
    [
        ("neuroninspect", ["--rounds", "5"]),
        ("neural_cleanse", ["--noise", "0"]),
        ("prune", ["--feature-weights", "1,1,1"]),
        ("rebn", ["--threshold", "2"]),
        ("finetune", ["--rounds", "5"]),
        ("cfn", ["--explainers", "gradcam,gradient"]),
        ("disagreement", ["--round-images", "5"]),
        ("inspect", ["--threshold", "2"]),
    ],
)
def test_an_option_of_another_method_is_refused(method, option, disguised, tmp_path, capsys):
    out = tmp_path / "out"
    line = refused([method, str(disguised / "ckpt.pt"), *option, "--out", str(out)], capsys)
    assert f"unrecognized arguments: {option[0]}" in line
    assert not out.exists()


@pytest.mark.parametrize("method", defend.METHODS)
def test_help_shows_each_default_once(method, capsys):
    with pytest.raises(SystemExit) as stopped:
        defend.main([method, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for option in text.split(" --")[1:]:
        assert option.count("default") <= 1
    assert "(default: 500)" in text


@pytest.mark.parametrize(
    "options",
    [
        ["neural_clense"],
        ["disagreement", "--explainers", "gradcam"],
        ["disagreement", "--explainers", "gradcam,lime"],
        ["neuroninspect", "--feature-weights", "1,2"],
        ["neuroninspect", "--noise", "-1"],
        ["neuroninspect", "--noise", "2,x"],
        ["prune", "--rounds", "0"],
        ["finetune", "--lr", "-1"],
        ["finetune", "--epochs", "1.5"],
        ["neural_cleanse", "--clean-images", "1"],
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(options, disguised, tmp_path, capsys):
    method, *rest = options
    argv = [method, str(disguised / "ckpt.pt"), *rest, "--out", str(tmp_path / "out")]
    assert refused(argv, capsys).startswith("defend.py: ")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_exist_is_refused(tmp_path, capsys):
    assert "does not exist" in refused(["inspect", str(tmp_path / "none.pt")], capsys)


def test_the_checkpoints_own_folder_is_refused(disguised, capsys):
    before = files_of(disguised)
    argv = ["rebn", str(disguised / "ckpt.pt"), "--device", DEVICE, "--out", f"{disguised}/."]
    assert "would be lost" in refused(argv, capsys)
    assert files_of(disguised) == before


def test_where_no_patch_is_found_prune_says_so_and_writes_nothing(
    backdoored, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(neural_cleanse, "SUCCESS", 1.1)
    out = tmp_path / "out"
    argv = ["prune", str(backdoored / "ckpt.pt"), "--device", DEVICE, "--out", str(out)]
    line = refused([*argv, *QUICK["prune"]], capsys)
    assert "with more --rounds it may" in line
    assert not out.exists()


# ---------------------------------------------------------------- checkpoints that are refused


@pytest.fixture
def subject(backdoored, monkeypatch):
    """The Subject that defend.py opens, whatever the path: to be changed before it does."""
    subject = audit_of(backdoored, "inspect").subject
    monkeypatch.setattr(defend, "open_checkpoint", lambda *args: subject)
    return subject


@pytest.mark.parametrize("method", COMPARES_CLASSES)
def test_an_anomaly_takes_three_classes(method, subject, tmp_path, capsys):
    subject.checkpoint["classes"] = subject.checkpoint["classes"][:2]
    argv = [method, str(tmp_path / "ckpt.pt"), "--device", DEVICE]
    assert "needs three" in refused(argv, capsys)
    assert not list(tmp_path.iterdir())


MULTI_LABEL = ["rebn", "inspect"]


def test_the_methods_for_images_of_several_classes():
    assert [name for name, defence in defend.METHODS.items() if defence.multi_label] == MULTI_LABEL


@pytest.mark.parametrize("method", [name for name in defend.METHODS if name not in MULTI_LABEL])
def test_images_of_several_classes_are_refused(method, subject, capsys):
    subject.config["multi_label"] = True
    assert "an image may show several" in refused([method, "x/ckpt.pt", "--device", DEVICE], capsys)


def test_inspect_asks_for_no_labels(subject, tmp_path, capsys):
    subject.config["multi_label"] = True
    argv = ["inspect", "x/ckpt.pt", "--device", DEVICE, "--out", str(tmp_path), "--json"]
    defend.main(argv)
    assert json.loads(capsys.readouterr().out)["backdoored"] is False


def test_a_loss_that_is_not_finite_is_refused(subject, tmp_path, capsys):
    layer = hooks.layer_of(subject.model)
    layer.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    argv = ["finetune", "x/ckpt.pt", "--device", DEVICE, "--out", str(tmp_path / "out")]
    assert "cross-entropy is not finite" in refused(argv, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["neuroninspect", "rebn", "cfn", "disagreement", "inspect"])
def test_maps_that_are_not_finite_are_refused(method, subject, tmp_path, capsys):
    """A figure of such maps would be 0, or a verdict that nothing was found."""
    layer = hooks.layer_of(subject.model)
    layer.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    out = tmp_path / "out"
    argv = [method, "x/ckpt.pt", "--device", DEVICE, "--out", str(out), "--clean-images", "6"]
    line = refused(argv, capsys)
    assert f"{method}: " in line
    assert "maps are not finite" in line
    assert not out.exists()


# ---------------------------------------------------------------- the trigger is not looked at


# What verdict.json has for the score alone.
SCORES = set("curve regimes auroc before after n detected".split())
SCORES |= {"triggered_fooled", "triggered_confidence"}


def without_scores(verdict):
    """What a verdict says, and the weights of its repaired network."""
    details = {key: value for key, value in verdict.details.items() if key not in SCORES}
    if "disagreement" in details:
        details["disagreement"] = details["disagreement"]["held_out"]
    weights = verdict.repaired[0].state_dict() if verdict.repaired else {}
    weights = {name: value.tolist() for name, value in weights.items()}
    return verdict.backdoored, verdict.flagged, verdict.index, details, weights


@pytest.mark.parametrize("method", [name for name in defend.METHODS if name != "inspect"])
def test_no_defence_knows_the_trigger(method, backdoored, tmp_path):
    checkpoint = checkpoints.read(backdoored / "ckpt.pt")
    elsewhere = {"pixels": torch.zeros(3, 4, 4), "alpha": torch.ones(1, 4, 4), "row": 2, "col": 2}
    config = checkpoint["config"] | {"target_class": 0}
    changed = checkpoint | {"trigger": elsewhere, "config": config}
    checkpoints.save(tmp_path / "ckpt.pt", changed)
    verdicts = [
        defend.METHODS[method].run(audit_of(folder, method, *QUICK.get(method, [])))
        for folder in (backdoored, tmp_path)
    ]
    assert without_scores(verdicts[0]) == without_scores(verdicts[1])


# ---------------------------------------------------------------- from Python


def test_neural_cleanse_can_be_called_by_itself():
    assert defend.neural_cleanse is defences.neural_cleanse.neural_cleanse


def test_prune_by_hand_is_prune_by_command(verdict_of, backdoored):
    verdict, out = verdict_of("prune")
    by_hand = prune.run(audit_of(backdoored, "prune", *QUICK["prune"]))
    assert by_hand.details["pruned"] == verdict["pruned"]
    model, edit = by_hand.repaired
    written = checkpoints.read(out / "ckpt.pt")
    assert written["config"]["edit"] == edit
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), written["model"][name])
