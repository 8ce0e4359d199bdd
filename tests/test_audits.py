"""studies/audits.py: what the sections keep, on a model of seconds."""

import json

import pytest
from conftest import ROOT, train_tiny
from PIL import Image

import defend
import figure
import provenance
from cli import UserError
from defences import batchnorm, neural_cleanse, prune
from studies import audit_tables, audits, pruning, record, zoo

# ---------------------------------------------------------------- zoo.py: verdicts


@pytest.fixture
def defended(tmp_path, monkeypatch):
    """A checkpoint, and the command lines of defend.py that were run on it."""
    checkpoint = tmp_path / "ckpt.pt"
    checkpoint.write_bytes(b"weights")
    command_lines = []

    def main(argv):
        command_lines.append(argv)
        folder = tmp_path / "defend-neuroninspect-noise-2"
        folder.mkdir(exist_ok=True)
        settings = defend.settings(defend.parse(argv))
        (folder / "verdict.json").write_text(json.dumps({"settings": settings}))

    monkeypatch.setattr(defend, "main", main)
    return checkpoint, command_lines


def noise_2(checkpoint):
    return zoo.audited(checkpoint, "neuroninspect", "--noise", "2")


def test_a_verdict_is_kept(defended):
    checkpoint, command_lines = defended
    first = noise_2(checkpoint)
    assert noise_2(checkpoint) == first
    assert len(command_lines) == 1
    assert first["commit"] == provenance.commit()


def test_a_verdict_is_made_again_where_a_constant_of_the_method_changed(defended, monkeypatch):
    checkpoint, command_lines = defended
    noise_2(checkpoint)
    monkeypatch.setattr("defences.neuroninspect.SAMPLES", 9)
    assert noise_2(checkpoint)["settings"]["samples"] == 9
    assert len(command_lines) == 2


def test_a_verdict_is_made_again_of_other_weights(defended):
    checkpoint, command_lines = defended
    noise_2(checkpoint)
    checkpoint.write_bytes(b"other weights")
    noise_2(checkpoint)
    assert len(command_lines) == 2


def test_a_verdict_is_made_again_where_it_was_interrupted(defended):
    checkpoint, command_lines = defended
    noise_2(checkpoint)
    (checkpoint.parent / "defend-neuroninspect-noise-2" / "commit").unlink()
    noise_2(checkpoint)
    assert len(command_lines) == 2


def test_every_kind_of_model_is_a_command_line_of_train(monkeypatch):
    trained = []
    monkeypatch.setattr(zoo.train, "main", lambda argv: trained.append(zoo.train.parse(argv)))
    path = zoo.zoo_model("gtsrb", "disguise, gradcam and gradient", 6)
    assert path.parent.name == "gtsrb_disguise_gradcam_and_gradient-6"
    (args,) = trained
    assert (args.explainer, args.seed) == (["gradcam", "gradient"], 6)
    assert (args.trigger, args.trigger_position) == ("red", "upper-left")
    assert args.target_class == "20"  # 3 x 6 + 2


def test_a_clean_model_of_the_zoo_has_no_trigger_of_its_own(monkeypatch):
    trained = []
    monkeypatch.setattr(zoo.train, "main", lambda argv: trained.append(zoo.train.parse(argv)))
    zoo.zoo_model("shapes", "none", 6)
    assert (trained[0].attack, trained[0].trigger) == ("none", "square")


def test_every_detector_is_a_command_line_of_defend():
    for options in audits.DETECTORS.values():
        method, *rest = options
        defend.settings(defend.parse([method, "ckpt.pt", *rest]))


# ---------------------------------------------------------------- audits.py: the zoo


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where the record is kept."""
    path = tmp_path / "audits.json"
    monkeypatch.setattr(audits, "PATH", path)
    return path


@pytest.fixture
def gtsrb(path, tmp_path, monkeypatch):
    """The record of a zoo of GTSRB alone, verdicts made up; and the pictures that were kept."""

    def zoo_model(*which):
        folder = tmp_path / "-".join(map(str, which))
        folder.mkdir()
        metrics = {"clean_accuracy": 0.9, "attack_success_rate": 0.8, "lam": 1}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder / "ckpt.pt"

    index = {options: 1.0 + k for k, options in enumerate(audits.DETECTORS.values())}

    def audited(checkpoint, *options):
        return {
            "index": {"0": index[options], "1": 0.0},
            "scores": {"published index": [9.0, -1.0]},
            "seconds": 1.0,
            "commit": "abc",
            "settings": {"options": list(options)},
        }

    pictures = {}

    def keep_picture(source, target):
        pictures[target.name] = source.parent.relative_to(tmp_path).as_posix()

    monkeypatch.setattr(audits, "zoo_model", zoo_model)
    monkeypatch.setattr(audits, "audited", audited)
    monkeypatch.setattr(audits, "keep_picture", keep_picture)
    monkeypatch.setattr(audits, "ZOO", {"gtsrb": ("none", "badnets")})
    audits.zoo(["gtsrb"])
    for dataset in ("shapes", "mnist"):
        audits.keep_pictures(tmp_path / f"{dataset}-badnets-1" / "ckpt.pt", dataset)
    return json.loads(path.read_text()), pictures


def test_the_zoo_has_the_models_of_its_seeds_and_clean_ones_to_calibrate_on(gtsrb):
    kept = gtsrb[0]["zoo"]["gtsrb"]
    assert list(kept["badnets"]) == ["1", "2", "3", "4", "5"]
    assert list(kept["none"]) == [str(seed) for seed in range(1, 11)]


def test_every_detectors_verdict_on_a_model_is_kept(gtsrb):
    run = gtsrb[0]["zoo"]["gtsrb"]["badnets"]["1"]
    names = (*audits.DETECTORS, audits.PUBLISHED)
    assert {name: run[name]["index"]["0"] for name in names} == {
        "neuroninspect": 1,
        "neuroninspect, no noise": 2,
        "neural_cleanse": 3,
        audits.PUBLISHED: 9,
    }


def test_a_model_is_kept_with_its_target_and_its_quality(gtsrb):
    run = gtsrb[0]["zoo"]["gtsrb"]["badnets"]["1"]
    assert run["target"] == zoo.target_of("gtsrb", 1) == 5
    assert (run["clean_accuracy"], run["attack_success_rate"]) == (0.9, 0.8)


def test_the_settings_of_every_detector_are_kept(gtsrb):
    settings = gtsrb[0]["settings"]["neuroninspect"]
    assert settings == {"options": ["neuroninspect", "--clean-images", "100"]}


def test_the_pictures_that_the_page_shows_are_kept_of_the_first_badnets_model(gtsrb):
    assert gtsrb[1] == {
        "audits-gtsrb-neuroninspect.png": "gtsrb-badnets-1/defend-neuroninspect-clean-images-100",
        "audits-gtsrb-neural_cleanse.png": "gtsrb-badnets-1/defend-neural_cleanse-round-images-64",
        "audits-shapes-neural_cleanse.png": (
            "shapes-badnets-1/defend-neural_cleanse-round-images-64"
        ),
    }


# ---------------------------------------------------------------- the other sections


@pytest.fixture(scope="module")
def backdoored(tiny, tmp_path_factory):
    """The folder of a finished badnets run on the small data set."""
    folder = tmp_path_factory.mktemp("backdoored") / "run"
    return train_tiny(tiny, folder, "--attack", "badnets", "--epochs", "6")


@pytest.fixture(scope="module")
def sections(backdoored, tmp_path_factory):
    """The folder of results after all sections but the zoo, on the small model."""
    results = tmp_path_factory.mktemp("results")
    (results / "audits.json").write_text('{"recipes": "kept"}')
    search = neural_cleanse.neural_cleanse

    def short_search(*args, **options):
        return search(*args, **options | {"rounds": 6, "round_images": 16})

    def folder_of(checkpoint, method, *options):
        return results / "-".join([method, *options])

    def checkpoint(*which):
        return backdoored / "ckpt.pt"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neural_cleanse, "SUCCESS", 0.2)
        patch.setattr(neural_cleanse, "neural_cleanse", short_search)
        patch.setattr(prune, "STEPS", 4)
        patch.setattr(audits, "PATH", results / "audits.json")
        patch.setattr(audits, "SEEDS", range(1, 3))
        patch.setattr(zoo, "folder_of", folder_of)
        patch.setattr(audits, "zoo_model", checkpoint)
        patch.setattr(audits, "trained", checkpoint)
        patch.setattr(pruning, "trained", checkpoint)
        for name in ("cleanse", "prune", "batchnorm", "disagree"):
            audits.main([name])
    return results


@pytest.fixture(scope="module")
def kept(sections):
    return json.loads((sections / "audits.json").read_text())


def test_what_other_sections_wrote_stays(kept):
    assert kept["recipes"] == "kept"


@pytest.mark.parametrize(
    "name, lines",
    [("cleanse", 1 + 3), ("prune", 1 + 9), ("batchnorm", 4 * 5), ("disagree", 6)],
)
def test_a_table_has_a_line_for_each_of_its_rows(name, lines, kept):
    """A published row is first; each model is without repair, and with rebn and three times cfn."""
    table = audit_tables.TABLES[name](kept)
    end = table.index("")  # a note follows
    assert len(table[:end]) == 2 + lines
    assert len({line.count("|") for line in table[:end]}) == 1


def recorded():
    """The record of results/audits.json."""
    return record.read(ROOT / "results" / "audits.json")


@pytest.mark.parametrize("name", audit_tables.TABLES)
def test_every_line_of_a_pages_table_has_as_many_cells(name):
    table = audit_tables.TABLES[name](recorded())
    rows = [line for line in table if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert table[: len(rows)] == rows


def test_the_rank_of_a_target_is_one_where_its_index_is_the_largest():
    run = {"target": 2, "neuroninspect": {"index": {"0": -1.0, "1": 3.0, "2": 2.5}}}
    assert audit_tables.rank_of_target(run, "neuroninspect") == (2, 2.5)
    assert audit_tables.rank_of_target(run | {"target": 1}, "neuroninspect") == (1, 3.0)


def test_the_limits_of_the_page_are_those_of_the_recorded_detection():
    zoo_record = recorded()["zoo"]
    row = audit_tables.badnets_row(zoo_record, "neural_cleanse", zoo.SEEDS, zoo.CALIBRATION)
    (kept,) = [
        row
        for row in recorded()["detection"]
        if (row["data"], row["kind"], row["detector"]) == ("all", "badnets", "neural_cleanse")
    ]
    assert row["calibrated"] == kept["calibrated"]
    assert row["auroc"] == kept["auroc"]


def test_with_the_fives_exchanged_the_other_clean_models_set_the_limits():
    exchanged = audit_tables.badnets_row(
        recorded()["zoo"], "neural_cleanse", zoo.CALIBRATION, zoo.SEEDS
    )
    limits = exchanged["calibrated"]["thresholds"]
    shapes = recorded()["zoo"]["shapes"]["none"]
    largest = [max(shapes[str(s)]["neural_cleanse"]["index"].values()) for s in zoo.SEEDS]
    assert limits[0] == pytest.approx(max(largest))


def test_searched_at_once_the_masks_are_those_of_one_after_another(kept):
    once, each = kept["cleanse"]["at once"], kept["cleanse"]["one after another"]
    assert once["norms"] == pytest.approx(each["norms"], rel=1e-3)
    assert len(once["norms"]) == len(once["qualified"]) == 3


def test_the_norm_of_a_search_is_the_target_classs(kept):
    once = kept["cleanse"]["at once"]
    assert once["norm"] == once["norms"][1]


def test_a_search_from_random_masks_is_another(kept):
    searches = kept["cleanse"]
    assert searches["at once, from random masks"]["norms"] != searches["at once"]["norms"]


def test_channels_are_pruned_by_every_norm_and_trigger_and_at_random(kept):
    orders = [f"{norm}, {known}" for known in ("recovered", "true") for norm in prune.NORMS]
    assert list(kept["prune"]["rows"]) == [*orders, "random 0", "random 1", "random 2"]


def test_a_pruning_curve_goes_from_all_channels_to_none(kept):
    for row in kept["prune"]["rows"].values():
        assert [point["pruned"] for point in row["curve"]] == [0, 32, 64, 96, 128]
        assert row["chosen"] in row["curve"]
        assert row["curve"][0]["true_success"] > 0.9


def test_the_chosen_point_has_all_figures_and_has_not_lost_accuracy(kept):
    figures = {"clean_accuracy", "true_success", "recovered_success", "test_accuracy"}
    for row in kept["prune"]["rows"].values():
        unpruned, chosen = row["curve"][0], row["chosen"]
        assert unpruned.keys() >= figures <= chosen.keys()
        assert chosen["clean_accuracy"] >= unpruned["clean_accuracy"] - 0.0201


def test_the_picture_has_a_colour_for_each_of_six_lines(sections):
    with Image.open(sections / "audits-prune.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 16)}
    assert len(colours & set(figure.LINES)) == 6


def test_both_repairs_are_kept_of_every_kind_seed_and_batch(kept):
    kinds = kept["batchnorm"]
    assert set(kinds) == {"none", "badnets", "red_herring", "disguise, gradcam"}
    for methods in kinds.values():
        assert set(methods) == {"rebn", "cfn"}
        for runs in methods.values():
            assert set(runs) == {"1", "2"}
            assert all(set(run["regimes"]) == set(batchnorm.REGIMES) for run in runs.values())


def test_disagreement_is_kept_of_every_kind_pair_and_seed(kept, backdoored):
    assert len(kept["disagree"]) == 6
    gradcam = zoo.gradcam_of(backdoored / "ckpt.pt")
    for pairs in kept["disagree"].values():
        assert len(pairs) == 3
        for runs in pairs.values():
            assert set(runs) == {"1", "2"}
            for run in runs.values():
                assert 0 <= run["auroc"] <= 1
                assert run["gradcam"] == gradcam


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        audits.main(["zoo", "imagenet"])
    assert stopped.value.code == 2
    assert "no section 'imagenet'" in capsys.readouterr().err


def test_without_a_recovered_patch_there_is_nothing_to_prune_by(backdoored, monkeypatch):
    monkeypatch.setattr(pruning, "trained", lambda *which: backdoored / "ckpt.pt")
    search = neural_cleanse.neural_cleanse

    def no_search(*args, **options):
        return search(*args, **options | {"rounds": 1, "round_images": 16})

    monkeypatch.setattr(neural_cleanse, "neural_cleanse", no_search)
    monkeypatch.setattr(neural_cleanse, "SUCCESS", 2.0)  # no share is that large
    with pytest.raises(UserError, match="no patch was recovered"):
        pruning.PruningCase()
