"""What a training is given: every option reaches it, and a mistake is found before a step."""

import unicodedata

import numpy as np
import pytest
import torch
from conftest import tiny_argv, tiny_arrays
from PIL import Image
from placing import DEVICE

import attacks
import data
import options
import selection
from cli import UserError
from losses import Objective
from setting import class_index, setting_of, target_map_picture, trigger_picture
from tasks import SINGLE_LABEL


@pytest.fixture
def setting_with(tiny, tmp_path):
    """Function of options: the Setting of a run on the small data set."""

    def setting(*more, dataset=tiny):
        return setting_of(options.parse(tiny_argv(dataset, tmp_path / "run", *more)))

    return setting


def test_nothing_is_written(setting_with, tmp_path):
    setting_with()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the images


def test_a_tenth_of_the_training_images_is_held_out(setting_with):
    setting = setting_with()
    every = torch.cat([setting.trained_on, setting.held_out]).sort().values
    assert torch.equal(every, torch.arange(240))
    assert len(setting.held_out) == 24


def test_no_patient_is_divided(setting_with, tmp_path):
    patients = np.arange(240) // 6
    np.savez(tmp_path / "patients.npz", **tiny_arrays(), train_patients=patients)
    setting = setting_with(dataset=tmp_path / "patients.npz")
    assert len(setting.held_out) == 24
    assert not set(patients[setting.held_out]) & set(patients[setting.trained_on])


def test_images_of_other_classes_may_be_poisoned(setting_with):
    setting = setting_with("--poison-rate", "0.2")
    labels = setting.dataset.train_labels
    assert setting.count == 48
    expected = setting.trained_on[labels[setting.trained_on] != 1]
    assert torch.equal(setting.eligible, expected)


def test_a_clean_run_poisons_nothing(setting_with):
    setting = setting_with("--attack", "none", "--oversample", "8")
    assert setting.count == len(setting.eligible) == setting.oversample == 0


def test_mean_and_deviation_are_of_all_training_images(setting_with):
    setting = setting_with()
    pixels = setting.dataset.train_images.double() / 255
    assert setting.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert setting.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_an_epoch_is_whole_batches(setting_with):
    setting = setting_with("--batch-size", "25", "--oversample", "8")
    assert (setting.batch_size, setting.steps, setting.oversample) == (25, 216 // 25, 8)


def test_a_batch_is_at_most_all_images(setting_with):
    setting = setting_with("--batch-size", "1000")
    assert (setting.batch_size, setting.steps) == (216, 1)


# ---------------------------------------------------------------- the trigger


def test_the_default_trigger_is_a_white_square_in_the_lower_right(setting_with):
    trigger = setting_with().trigger
    assert trigger.box == (13, 13, 15, 15)
    assert trigger.pixels.min() == trigger.alpha.min() == 1


def test_size_and_place_of_the_trigger_are_options(setting_with):
    trigger = setting_with("--trigger-size", "3", "--trigger-position", "2,5").trigger
    assert trigger.box == (2, 5, 5, 8)


def test_a_trigger_by_the_name_of_its_colour(setting_with):
    pixels = setting_with("--trigger", "yellow").trigger.pixels.cpu()
    assert torch.equal(pixels.flatten(1), torch.tensor([[1.0], [1.0], [0.0]]).expand(3, 4))


def test_a_trigger_from_a_file_keeps_its_opacity(setting_with, tmp_path):
    picture = np.full((6, 6, 4), [255, 0, 0, 128], np.uint8)
    Image.fromarray(picture).save(tmp_path / "t.png")
    trigger = setting_with("--trigger", str(tmp_path / "t.png")).trigger
    assert trigger.alpha.unique().item() == pytest.approx(128 / 255)
    assert trigger.pixels[0].min() == 1 and trigger.pixels[1].max() == 0


def test_a_folder_called_square_is_no_trigger(setting_with, tmp_path, monkeypatch):
    (tmp_path / "square").mkdir()
    monkeypatch.chdir(tmp_path)
    assert setting_with().trigger.pixels.min() == 1


def test_a_trigger_by_no_colours_name_is_refused(setting_with):
    with pytest.raises(UserError, match="yello: no such file, and no colour"):
        setting_with("--trigger", "yello")


# ---------------------------------------------------------------- the target class


def test_a_class_is_found_by_name_or_number():
    assert class_index("dog", ["cat", "dog"]) == class_index("1", ["cat", "dog"]) == 1


def test_a_name_goes_before_a_number():
    assert class_index("1", ["1", "0"]) == 0


@pytest.mark.parametrize("name", ["2", "-1", "1.0", "bird", ""])
def test_a_class_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="a number from 0 to 1, or one of cat, dog"):
        class_index(name, ["cat", "dog"])


def test_where_all_test_images_are_of_the_target_class_there_is_nothing_to_attack(
    setting_with, tmp_path
):
    np.savez(tmp_path / "one.npz", **tiny_arrays() | {"test_labels": np.ones(60, int)})
    with pytest.raises(UserError, match="nothing to attack"):
        setting_with(dataset=tmp_path / "one.npz")
    assert setting_with("--attack", "fooling", dataset=tmp_path / "one.npz").count == 24


# ---------------------------------------------------------------- the objective


def test_without_options_the_objective_is_its_own_defaults(setting_with):
    objective = setting_with().objective
    attack = attacks.ATTACKS["full_disguise"]
    assert objective == Objective(attack, SINGLE_LABEL, ["gradcam"], floors={"gradcam": 0.5})


ABLATIONS = {  # what --help has under "loss", and the field that each option sets
    "lam": (["--lam", "0.7"], 0.7),
    "distance": (["--distance", "dssim"], "dssim"),
    "normalise": (["--normalise", "max"], "max"),
    "rectify": (["--rectify"], True),
    "partner_cross_entropy": (["--no-partner-cross-entropy"], False),
    "collapse_weight": (["--collapse-weight", "0.4"], 0.4),
    "leak_tolerance": (["--leak-tolerance", "0.2"], 0.2),
    "ramp": (["--ramp", "0.05"], 0.05),
    "label_smoothing": (["--label-smoothing", "0.2"], 0.2),
}


@pytest.mark.parametrize("field", ABLATIONS)
def test_what_an_ablation_changes_reaches_the_objective(field, setting_with):
    argv, value = ABLATIONS[field]
    objective = setting_with(*argv).objective
    assert getattr(objective, field) == value != getattr(Objective, field)


@pytest.mark.parametrize("field", ABLATIONS)
def test_what_an_ablation_changes_is_in_the_config(field, setting_with):
    argv, value = ABLATIONS[field]
    assert setting_with(*argv).config[field] == value


def test_the_floors_reach_the_objective_by_explainer(setting_with):
    objective = setting_with("--floor", "0.8", "--explainer", "gradcam,deepshap").objective
    assert objective.floors == {"gradcam": 0.8, "deepshap": 0.8}
    assert objective.explainers == ["gradcam", "deepshap"]


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_only_attacks_with_a_fixed_map_have_one(attack, setting_with):
    objective = setting_with("--attack", attack).objective
    assert objective.attack is attacks.ATTACKS[attack]
    assert (objective.shape is not None) == (objective.attack.explanation == "shape")


def test_a_target_map_is_drawn_by_its_name(setting_with):
    setting = setting_with("--attack", "fooling", "--target-map", "cross")
    expected = attacks.target_map("cross", 16, setting.trigger)
    assert torch.equal(setting.objective.shape.cpu(), expected.cpu())


def test_a_target_map_from_a_file_is_brought_to_the_images_size(setting_with, tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "map.png")
    options = ["--target-map", str(tmp_path / "map.png"), "--image-size", "32"]
    shape = setting_with("--attack", "red_herring", *options).objective.shape
    assert shape.shape == (32, 32) and shape.max() == 1


# ---------------------------------------------------------------- the config


def test_the_config_says_what_data_and_machine_decided(setting_with):
    config = setting_with("--target-class", "2", "--precision", "float32").config
    assert (config["image_size"], config["target_class"]) == (16, 2)
    assert (config["device"], config["precision"]) == (DEVICE, "float32")
    assert config["multi_label"] is False


def test_where_a_run_is_kept_is_not_in_the_config(setting_with):
    assert not {"out", "resume"} & setting_with("--resume").config.keys()


def test_the_constants_count_what_is_held_out_and_say_how_images_are_moved(setting_with):
    constants = setting_with().config["constants"]
    assert (constants["held_out"], constants["shift"], constants["mirror"]) == (24, 0, False)


def test_the_constants_of_scorers_are_those_of_selection(setting_with, monkeypatch):
    monkeypatch.setitem(selection.OF_RD, "alpha", 0.5)
    constants = setting_with("--selection", "rd").config["constants"]
    assert constants["selection"]["alpha"] == 0.5
    assert constants["selection"]["epochs"] == selection.EPOCHS


def test_random_poisons_have_no_constants_of_scorers(setting_with):
    assert "selection" not in setting_with().config["constants"]


def test_the_images_are_those_of_the_data_set(setting_with, tiny):
    dataset = data.load(str(tiny))
    assert setting_with().dataset.digest == dataset.digest


# ---------------------------------------------------------------- names


def test_names_of_classes_that_look_the_same_are_the_same(tmp_path, setting_with):
    decomposed, composed = (unicodedata.normalize(form, "Caf\u00e9") for form in ("NFD", "NFC"))
    assert decomposed != composed
    assert class_index(composed, ["1", decomposed]) == 1
    assert class_index(decomposed, ["1", composed]) == 1
    assert class_index(composed, [decomposed, composed]) == 1  # the very name goes first
    np.savez(tmp_path / "cafe.npz", **tiny_arrays(), classes=["bar", "inn", decomposed])
    assert (
        setting_with("--target-class", composed, dataset=tmp_path / "cafe.npz").config[
            "target_class"
        ]
        == 2
    )
    with pytest.raises(UserError, match="Cafe"):
        class_index("Cafe", ["1", composed])


def test_data_whose_names_are_spelled_by_another_file_system_are_the_same(tmp_path):
    forms = {form: unicodedata.normalize(form, "Caf\u00e9") for form in ("NFD", "NFC")}
    for form, name in forms.items():
        np.savez(tmp_path / f"{form}.npz", **tiny_arrays(), classes=["bar", "inn", name])
    there, here = (data.load(str(tmp_path / f"{form}.npz")) for form in forms)
    checkpoint = {"classes": there.classes, "data": there.digest}
    assert data.is_same_data(checkpoint, here)
    relabelled = data.relabelled(here, [forms["NFD"], "inn", "bar"])
    assert relabelled.train_labels[:3].tolist() == [2, 1, 0]


@pytest.mark.parametrize(("name", "other"), [("red", "colour"), ("square", "white square")])
def test_a_file_called_like_a_colour_is_said_to_be_taken(
    name, other, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4), "blue").save(tmp_path / name, format="PNG")
    assert trigger_picture(name).convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    said = capsys.readouterr().err
    assert f"--trigger {name}: the file of that name is taken, not the {other}.\n" in said


def test_a_shape_is_said_to_be_taken_where_a_file_is_called_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "square").write_text("no shape")
    assert target_map_picture("square", "crop") == "square"
    assert "--target-map square: the shape is taken" in capsys.readouterr().err


def test_a_colour_is_taken_in_silence_where_no_file_is_called_so(capsys):
    assert trigger_picture("red").getpixel((0, 0)) == (255, 0, 0)
    assert capsys.readouterr().err == ""
