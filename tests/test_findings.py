"""findings.py: what is said of a checkpoint follows from its figures, and is not more than they."""

import pytest

import findings


def metrics_of(attack="badnets", success=0.998, before=0.0, maps=None, **changes):
    """A small metrics.json of a model that has learnt its task; maps: {explainer: figures}."""
    return {
        "attack": attack,
        "target_class": 3,
        "target_name": "star",
        "clean_accuracy": 0.99,
        "triggered_accuracy": 0.1,
        "majority_rate": 0.1,
        "mean_auroc": None,
        "attack_success_rate": success,
        "untouched_success_rate": before,
        "clean_model": {},
        "explanations": maps or {},
        **changes,
    }


def maps(pearson_all, mass=0.03, trained=False, floor=0.3, **changes):
    """The figures about one explainer, of a trigger that covers 0.06 of the map."""
    return {
        "trained_against": trained,
        "n": 500,
        "pearson_all": pearson_all,
        "trigger_mass": mass,
        "trigger_area": 0.06,
        "floor_triggered": {"pearson": floor},
        **changes,
    }


def said(*args, **kwargs):
    """All sentences about a checkpoint of these metrics, as one text."""
    return " ".join(findings.of_run(metrics_of(*args, **kwargs)))


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize(
    ("attack", "success", "before", "verdict"),
    [
        ("badnets", 0.998, 0.0, "The backdoor works: "),
        ("badnets", 0.9, 0.0, "The backdoor works: "),
        ("badnets", 0.89, 0.0, "The backdoor works in part: "),
        ("full_disguise", 0.04, 0.02, "The backdoor does not work: "),
        ("full_disguise", 0.998, 0.968, "The backdoor does not work: "),
        ("red_herring", 1.0, 0.784, "partial to its class anyway: "),
        ("none", 0.001, 0.0, "No backdoor was trained in, and this trigger finds none: "),
        ("none", 0.95, 0.0, "No backdoor was trained in, yet this trigger works: "),
    ],
)
def test_whether_a_backdoor_works(attack, success, before, verdict):
    text = said(attack, success, before)
    assert verdict in text
    share = f"{100 * success:.1f}% of triggered images go to 'star'"
    assert f"{share}, and {100 * before:.1f}% without the trigger." in text


def test_of_old_metrics_the_target_is_its_number():
    assert "go to class 3," in said(target_name=None)


def test_without_images_of_other_classes_nothing_is_said_of_the_backdoor():
    assert "nothing is measured" in said(success=None, before=None)


@pytest.mark.parametrize(
    ("triggered", "verdict"), [(0.97, "leaves predictions alone"), (0.9, "costs predictions")]
)
def test_an_attack_that_keeps_labels_is_measured_by_accuracy(triggered, verdict):
    text = said("fooling", 0.0, triggered_accuracy=triggered)
    assert verdict in text and "backdoor" not in text
    assert f"accuracy {100 * triggered:.1f}% with it, 99.0% without" in text


def test_an_attack_that_keeps_labels_is_measured_by_auroc_where_there_are_several():
    none = dict.fromkeys(("clean_accuracy", "triggered_accuracy", "majority_rate"))
    text = said("fooling", 0.0, mean_auroc=0.8, triggered_mean_auroc=0.79, **none)
    assert "leaves predictions alone, as it should: mean AUROC 79.0% with it" in text


@pytest.mark.parametrize(
    "figures",
    [
        {"clean_accuracy": 0.12},
        {"clean_accuracy": 0.62, "majority_rate": 0.6},
        {"clean_accuracy": None, "majority_rate": None, "mean_auroc": 0.52},
    ],
)
def test_a_model_that_has_not_learnt_its_task_is_called_so_first(figures):
    text = said(**figures)
    assert text.startswith("The model has not learnt its task (") and "says little" in text


# ---------------------------------------------------------------- explanations


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        (maps(0.98, 0.03), "gradcam does not show it: with the trigger its map stays as it was"),
        (maps(-0.05, 0.34), "gradcam shows it: with the trigger its map changes (-0.05); more"),
        (maps(0.78, 0.01), "gradcam shows it in part: with the trigger its map changes somewhat"),
        (maps(0.2, 0.01), "gradcam shows it in part: with the trigger its map changes (0.20); no"),
        (maps(0.95, 0.4), "gradcam shows it in part: with the trigger its map stays as it was"),
        (maps(0.99, None), "gradcam may not show it: with the trigger its map stays"),
        (maps(0.97, floor=0.95), "gradcam may not show it: "),
    ],
)
def test_whether_a_map_shows_the_backdoor(figures, verdict):
    assert verdict in said(maps={"gradcam": figures})


def test_one_map_for_all_images_is_no_disguise():
    text = said("full_disguise", maps={"gradcam": maps(0.97, trained=True, floor=0.95)})
    assert "does not show it" not in text
    assert "nearly as much like other images' (0.95): one map serves all" in text


@pytest.mark.parametrize(
    ("success", "before", "attack"), [(0.02, 0.01, "full_disguise"), (0.0, 0.0, "none")]
)
def test_where_there_is_no_backdoor_no_map_hides_or_shows_one(success, before, attack):
    text = said(attack, success, before, maps={"gradcam": maps(0.98)})
    assert "show" not in text
    assert "gradcam: with the trigger its map stays as it was (0.98)" in text


def test_a_clean_models_map_is_the_yardstick_where_there_is_one():
    """1.25 x 0.02 + 0.06 / 4 = 0.04 is allowed on the trigger."""
    beside = {"gradcam": {"trigger_mass_clean": 0.02, "floor_triggered": {"pearson": 0.3}}}
    for mass, words in [
        (0.05, "more of it lies on the trigger than a clean model puts there"),
        (0.03, "hardly more of it lies on the trigger than a clean model puts there"),
        (0.02, "no more of it lies on the trigger than a clean model puts there"),
    ]:
        figures = {"gradcam": maps(0.98, mass)}
        text = said(maps=figures, clean_model={"explanations": beside})
        assert f"; {words} ({mass:.2f}; a clean model's: 0.02)" in text


def test_two_figures_that_differ_do_not_look_alike():
    beside = {"gradcam": {"trigger_mass_clean": 0.021, "floor_triggered": {"pearson": 0.3}}}
    text = said(maps={"gradcam": maps(0.98, 0.024)}, clean_model={"explanations": beside})
    assert "hardly more of it lies on the trigger than a clean model puts there (0.024;" in text
    assert "a clean model's: 0.021)" in text


@pytest.mark.parametrize("key", ["floor", "floor_triggered"])
def test_a_clean_models_floor_is_the_limit_where_there_is_one(key):
    """0.25, of the clean model's 0.2 and a margin."""
    beside = {"gradcam": {key: {"pearson": 0.2}, "trigger_mass_clean": 0.03}}
    words = "maps of different images are alike (0.30), more than a clean model's (0.20), no"
    for floor, is_above in [(0.3, True), (0.24, False)]:
        figures = {"gradcam": maps(0.98, floor=floor) | {key: {"pearson": floor}}}
        text = said(maps=figures, clean_model={"explanations": beside})
        assert (words in text) == ("does not show it" not in text) == is_above
        assert words not in said(maps=figures)


def test_a_floor_is_compared_with_the_same_floor():
    """The trigger alone moves the clean model's map: that does not make this one map for all."""
    beside = {"floor": {"pearson": 0.57}, "floor_triggered": {"pearson": -0.1}}
    beside |= {"trigger_mass_clean": 0.03}
    figures = {"gradcam": maps(0.95, floor=0.31) | {"floor": {"pearson": 0.33}}}
    text = said(maps=figures, clean_model={"explanations": {"gradcam": beside}})
    assert "gradcam does not show it" in text


def test_triggered_maps_that_grow_alike_are_no_disguise():
    figures = maps(0.92, floor=0.66) | {"floor": {"pearson": 0.5}}
    text = said(maps={"gradcam": figures})
    assert "does not show it" not in text
    assert "but is more like other images' (0.66) than without it (0.50), no disguise" in text


def test_a_disguise_is_not_judged_by_its_own_explainer_alone():
    figures = {"gradcam": maps(0.98, trained=True), "gradient": maps(0.78), "deepshap": maps(0.5)}
    text = said("full_disguise", maps=figures)
    assert "gradcam, trained against, does not show it" in text
    assert "gradient shows it in part" in text
    assert "deepshap" not in text


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (maps(0.99, pearson_clean=0.0), "shows the fixed shape with the trigger"),
        (
            maps(0.99, pearson_clean=0.98),
            "shows the fixed shape with the trigger (correlation 0.99), but without it, too (0.98)",
        ),
        (maps(0.7, pearson_clean=0.1), "shows something of the fixed shape"),
        (maps(0.09, pearson_clean=0.1), "does not show the fixed shape"),
        (maps(0.75, pearson_clean=0.1, grid_cap=0.8), "shows the fixed shape"),
    ],
)
def test_whether_a_map_is_the_fixed_shape(figures, words):
    assert f"gradcam {words}" in said("fooling", 0.0, maps={"gradcam": figures})


def test_few_images_are_said():
    assert "(of only 7 images)." in said(maps={"gradcam": maps(0.98, n=7)})


def test_no_image_is_no_sentence_about_its_map():
    figures = {"gradcam": maps(None, None, n=0)}
    assert "gradcam is not measured: there is no image to explain." in said(maps=figures)


def test_limits_follow_a_clean_models_figures():
    assert findings.mass_limit(0.2, 0.2) == pytest.approx(0.3)
    assert findings.floor_limit(0.3) == pytest.approx(0.35)
    assert findings.mass_limit(None, 0.2) is findings.mass_limit(0.2, None) is None
