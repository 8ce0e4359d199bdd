"""Checkpoints: plain data, whole, refused in one line where damaged, and read from old versions."""

import copy
import functools
import os
import random
import struct
import zipfile
import zlib

import pytest
import torch
from conftest import of_former_version, of_unnumbered_version, tiny_argv

import archives
import checkpoints
import edited
import models
import runs
import train
from cli import UserError


@pytest.fixture(scope="module")
def path(disguised):
    """The path of a finished run's checkpoint."""
    return disguised / "ckpt.pt"


@pytest.fixture
def checkpoint(path):
    """A checkpoint, as plain data, that a test may change."""
    return torch.load(path, map_location="cpu", weights_only=True)


# ---------------------------------------------------------------- written, read, rebuilt


def test_a_checkpoint_is_plain_data(checkpoint):
    assert checkpoint["config"]["attack"] == "full_disguise"
    assert checkpoint["epoch"] == 6
    assert checkpoints.KEYS <= checkpoint.keys()


def test_what_is_saved_is_read(checkpoint, tmp_path):
    checkpoints.save(tmp_path / "ckpt.pt", checkpoint)
    again = checkpoints.read(tmp_path / "ckpt.pt")
    assert again["config"] == checkpoint["config"]
    assert all(torch.equal(again["model"][key], checkpoint["model"][key]) for key in again["model"])


def test_the_model_is_rebuilt_of_the_checkpoint_alone(path):
    checkpoint = checkpoints.read(path)
    weights = checkpoints.rebuild(checkpoint).state_dict()
    assert weights.keys() == checkpoint["model"].keys()
    assert all(torch.equal(weights[key], value) for key, value in checkpoint["model"].items())


def test_a_rebuilt_model_is_in_evaluation_mode_and_frozen(path):
    model = checkpoints.rebuild(checkpoints.read(path))
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_rebuilt_model_is_looked_at_in_its_own_layer(path):
    checkpoint = checkpoints.read(path)
    checkpoint["config"]["layer"] = "0.4"
    assert checkpoints.rebuild(checkpoint).gradcam_layer == "0.4"


def test_an_edited_model_is_rebuilt_as_it_was_edited(path):
    checkpoint, edit = checkpoints.read(path), {"technique": "cfn"}
    model = edited.apply_edit(checkpoints.rebuild(checkpoint), edit, 3, 16)
    checkpoint["config"]["edit"] = edit
    checkpoint["model"] = model.state_dict()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(checkpoints.rebuild(checkpoint)(images), model(images))


# ---------------------------------------------------------------- the digest


def test_what_is_saved_has_a_digest(checkpoint, tmp_path, capsys):
    checkpoints.save(tmp_path / "ckpt.pt", checkpoint)
    assert archives.check(tmp_path / "ckpt.pt") is True
    checkpoints.read(tmp_path / "ckpt.pt")
    assert capsys.readouterr().err == ""


def test_a_checkpoint_of_before_the_digest_is_read_and_that_is_said_once(
    checkpoint, tmp_path, capsys
):
    path = tmp_path / "ckpt.pt"
    torch.save(checkpoint, path)
    for _ in range(2):
        assert checkpoints.read(path)["epoch"] == checkpoint["epoch"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(
        f"{path} has no digest, as of an older version"
    )


def test_what_is_refused_is_one_line_with_a_digest_or_without(checkpoint, tmp_path, capsys):
    torch.save(checkpoint | {"std": [0.0] * 3}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="std.0 is 0.0, not a number above 0"):
        checkpoints.read(tmp_path / "ckpt.pt")
    assert capsys.readouterr().err == ""


def test_other_weights_behind_the_same_digest_are_refused(path, tmp_path):
    """One bit of one weight: its checksum is made anew, and the digest stays."""
    damaged = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda part: part.file_size)
    first = (
        member.header_offset
        + 30
        + sum(struct.unpack_from("<2H", damaged, member.header_offset + 26))
    )
    damaged[first] ^= 1
    crc = struct.pack("<L", zlib.crc32(damaged[first : first + member.file_size]))
    damaged = damaged.replace(struct.pack("<L", member.CRC), crc)
    (tmp_path / "ckpt.pt").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "ckpt.pt") as archive:
        assert archive.testzip() is None
    with pytest.raises(UserError, match="its digest is of other bytes"):
        checkpoints.read(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_checkpoint_is_refused_or_holds_what_it_held(sealed, checkpoint, tmp_path):
    path, rng = tmp_path / "ckpt.pt", random.Random(0)
    checkpoints.save(path, checkpoint) if sealed else torch.save(checkpoint, path)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 4])):
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = checkpoints.read(path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert not sealed
        assert all(torch.equal(found["model"][k], v) for k, v in checkpoint["model"].items())
        assert torch.equal(found["trigger"]["pixels"], checkpoint["trigger"]["pixels"])


# ---------------------------------------------------------------- refused


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="none.pt does not exist"):
        checkpoints.read(tmp_path / "none.pt")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_in_a_checkpoint_is_ever_run(checkpoint, tmp_path):
    torch.save(checkpoint | {"log": Evil(tmp_path / "made")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="damaged, or no checkpoint"):
        checkpoints.read(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


def test_a_damaged_checkpoint_never_ends_in_another_error(path, tmp_path):
    whole, refused = path.read_bytes(), 0
    for place in range(0, 3000, 61):  # where the pickle lies
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (tmp_path / "broken.pt").write_bytes(broken)
        try:
            checkpoints.rebuild(checkpoints.read(tmp_path / "broken.pt"))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


def put(key, value):
    """Function: a checkpoint with another value under "KEY", or "KEY.KEY" for a part of a part."""

    def changed(checkpoint):
        *outer, last = key.split(".")
        part = checkpoint
        for name in outer:
            part = part[name]
        part[last] = value
        return checkpoint

    return changed


NOT_COMPLETE = {
    "no dict": lambda checkpoint: list(checkpoint),
    "no weights": lambda checkpoint: {k: v for k, v in checkpoint.items() if k != "model"},
    "no config": put("config", None),
    "config without a layer": put("config", {"image_size": 16}),
    "no trigger": put("trigger", 3),
    "trigger below the image": put("trigger.row", 15),
    "trigger left of the image": put("trigger.col", -1),
    "trigger of no pixels' shape": put("trigger.alpha", torch.ones(2)),
    "trigger that cannot be seen": put("trigger.alpha", torch.zeros(1, 2, 2)),
    "image size that is no number": put("config.image_size", "16"),
}


@pytest.mark.parametrize("change", NOT_COMPLETE)
def test_a_checkpoint_with_a_part_missing_is_refused(change, checkpoint, tmp_path):
    torch.save(NOT_COMPLETE[change](checkpoint), tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="no checkpoint of train.py's, or one of another version"):
        checkpoints.read(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("key", ["constants", "explainer"])
def test_a_config_of_no_format_with_a_damaged_part_is_refused(key, checkpoint, tmp_path):
    before = put(f"config.{key}", 3)(of_unnumbered_version(checkpoint))
    torch.save(before, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="no checkpoint of train.py's, or one of another version"):
        checkpoints.read(tmp_path / "ckpt.pt")


DO_NOT_FIT = {
    "no weights": put("model", {}),
    "weights that are a list": put("model", []),
    "another network": put("config.model", "resnet18"),
    "layer nobody knows": put("config.layer", "layer9"),
    "another number of classes": put("classes", ["a", "b"]),
    "another number of channels": put("channels", 1),
    "edit nobody knows": put("config.edit", {"technique": "magic"}),
    "edit that is a word": put("config.edit", "cfn"),
}


@pytest.mark.parametrize("change", DO_NOT_FIT)
def test_weights_that_do_not_fit_the_config_are_refused(change, checkpoint):
    with pytest.raises(UserError, match="weights do not fit its model"):
        checkpoints.rebuild(DO_NOT_FIT[change](checkpoint))


OTHER_WEIGHTS = {
    "of another shape": lambda weight: weight[:2],
    "in float64": lambda weight: weight.double(),
    "in whole numbers": lambda weight: weight.long(),
}


@pytest.mark.parametrize("change", OTHER_WEIGHTS)
def test_weights_of_another_shape_or_dtype_are_named(change, checkpoint):
    weights = checkpoint["model"]
    weights["3.bias"] = OTHER_WEIGHTS[change](weights["3.bias"])
    with pytest.raises(UserError, match="do not fit its model: 3.bias is a tensor"):
        checkpoints.rebuild(checkpoint)


def test_a_huge_network_is_refused_before_it_takes_memory(checkpoint, monkeypatch):
    checkpoint["classes"] = [str(k) for k in range(100_000)]
    checkpoint["config"] |= {"model": "vgg16", "image_size": 64}
    built, real = [], models.build

    def build(*arguments):
        built.append(real(*arguments))
        return built[-1]

    monkeypatch.setattr(models, "build", build)
    with pytest.raises(UserError, match="do not fit"):
        checkpoints.rebuild(checkpoint)
    assert [next(model.parameters()).device.type for model in built] == ["meta"]


def test_a_network_that_computes_while_it_is_built_is_built(checkpoint, monkeypatch):
    def cnn(channels, classes, image_size):
        torch.linspace(0, 1, 3)[1].item()
        return models.cnn(channels, classes, image_size)

    monkeypatch.setitem(models.MODELS, "mine", cnn)
    checkpoint["config"]["model"] = "mine"
    weights = checkpoints.rebuild(checkpoint).state_dict()
    assert all(torch.equal(weights[key], value) for key, value in checkpoint["model"].items())


# ---------------------------------------------------------------- of a run that is to go on


@pytest.fixture
def unfinished(checkpoint):
    """A checkpoint of a run that has more epochs to go than it has done."""
    schedule = checkpoint["schedule"][0]
    checkpoint["config"]["epochs"] += 1
    schedule["total_steps"] = schedule["last_epoch"] // 6 * 7 + 1
    schedule["_schedule_phases"][-1]["end_step"] = schedule["total_steps"] - 1
    return checkpoint


def test_an_unfinished_run_is_read(unfinished, tmp_path):
    checkpoints.save(tmp_path / "ckpt.pt", unfinished)
    assert checkpoints.read(tmp_path / "ckpt.pt")["epoch"] == 6


def state_of(checkpoint):
    """What the optimizer keeps of the first weight."""
    return checkpoint["optimizer"][0]["state"][0]


NOT_TO_GO_ON = {
    "weights of another shape": lambda c: c["model"].update({"3.bias": torch.ones(7)}),
    "a weight that is missing": lambda c: c["model"].pop("3.bias"),
    "no optimizer": lambda c: c.update(optimizer=[]),
    "no schedule": lambda c: c.update(schedule=[]),
    "momentum of another shape": lambda c: state_of(c).update(momentum_buffer=torch.ones(7)),
    "momentum of a weight there is not": lambda c: c["optimizer"][0]["state"].update(
        {999: {"momentum_buffer": torch.ones(7)}}
    ),
    "momentum that is a number": lambda c: state_of(c).update(momentum_buffer=3),
    "momentum in float64": lambda c: state_of(c).update(
        momentum_buffer=state_of(c)["momentum_buffer"].double()
    ),
    "no momentum": lambda c: state_of(c).clear(),
    "weights in another order": lambda c: c["optimizer"][0]["param_groups"][0]["params"].reverse(),
    "a schedule that is over sooner": lambda c: c["schedule"][0].update(total_steps=60),
    "a schedule that is further": lambda c: c["schedule"][0].update(last_epoch=60),
    "a step counted twice": lambda c: c["schedule"][0].update(_step_count=3),
    "a phase of no step": lambda c: c["schedule"][0]["_schedule_phases"][0].update(end_step=0),
    "no rate": lambda c: c["optimizer"][0]["param_groups"][0].pop("momentum"),
}


@pytest.mark.parametrize("change", NOT_TO_GO_ON)
def test_what_a_run_could_not_go_on_with_is_refused(change, unfinished, tmp_path):
    NOT_TO_GO_ON[change](unfinished)
    checkpoints.save(tmp_path / "ckpt.pt", unfinished)
    with pytest.raises(UserError, match="ckpt.pt.*(do not fit|optimizer|schedule)"):
        checkpoints.read(tmp_path / "ckpt.pt")


def test_a_network_that_is_not_known_here_is_named(checkpoint):
    with pytest.raises(UserError, match="'perceptron', unknown here"):
        checkpoints.rebuild(put("config.model", "perceptron")(checkpoint))


# ---------------------------------------------------------------- of the versions before


@pytest.fixture
def of_now_and_before(tiny, tmp_path):
    """Function (version, options): a new checkpoint, and what is read of it as it once was.

    version: a function of the checkpoint.
    """

    def both(version, *options):
        run = train.new_run(train.parse(tiny_argv(tiny, tmp_path / "run", *options)))
        train.choose_poisons(run)
        now = runs.checkpoint_of(run)
        torch.save(version(copy.deepcopy(now)), tmp_path / "before.pt")
        return now, checkpoints.read(tmp_path / "before.pt")

    return both


@pytest.fixture
def of_now_and_former(of_now_and_before):
    """Function of options: (a new checkpoint, what is read of the same one of former version)."""
    return functools.partial(of_now_and_before, of_former_version)


ABLATIONS = {
    "normalise": ["--normalise", "max"],
    "rectify": ["--rectify"],
    "partner_cross_entropy": ["--no-partner-cross-entropy"],
    "collapse_weight": ["--collapse-weight", "0.4"],
    "leak_tolerance": ["--leak-tolerance", "0.2"],
    "ramp": ["--ramp", "0.05"],
}


def test_a_checkpoint_of_the_former_version_has_the_config_of_now(of_now_and_former):
    now, former = of_now_and_former()
    assert former["config"] == now["config"] | {"format": 1}


@pytest.mark.parametrize("option", ABLATIONS)
def test_a_former_constant_is_read_as_the_option_it_is_now(option, of_now_and_former):
    now, former = of_now_and_former(*ABLATIONS[option])
    assert former["config"][option] == now["config"][option]
    assert former["config"] == now["config"] | {"format": 1}


def test_former_constants_of_scorers_are_read_but_for_their_number(of_now_and_former, monkeypatch):
    monkeypatch.setattr(
        train, "scores_of", lambda setting, poisons, pool, k: pool.double()[:, None].repeat(1, 2)
    )
    now, former = of_now_and_former("--attack", "badnets", "--selection", "rd-global")
    constants = now["config"]["constants"]["selection"]
    expected = constants | {"score": "log(1 - p)"}  # RD is ranked by since
    assert former["config"]["constants"]["selection"] == expected
    assert constants["score"] == "RD"


def test_a_model_of_the_former_version_is_rebuilt(checkpoint, tmp_path):
    torch.save(of_former_version(checkpoint), tmp_path / "former.pt")
    former = checkpoints.rebuild(checkpoints.read(tmp_path / "former.pt"))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(former(images), checkpoints.rebuild(checkpoint)(images))


def test_a_config_of_now_is_left_as_it_is(checkpoint):
    config = checkpoint["config"] | {"format": checkpoints.FORMAT}
    assert checkpoints.current_config(config) is config


EXPLAINERS = {
    "none of Shapley values": "gradcam",
    "one alone": "gpshap",
    "one of several": "gradcam,gpshap,deepshap",
}


@pytest.mark.parametrize("version", [of_unnumbered_version, of_former_version])
@pytest.mark.parametrize("explainers", EXPLAINERS)
def test_a_checkpoint_of_no_format_has_the_config_of_now(explainers, version, of_now_and_before):
    """So a finished run is finished under the name that its estimator has now."""
    now, before = of_now_and_before(version, "--explainer", EXPLAINERS[explainers])
    assert before["config"] == now["config"] | {"format": 1}
    assert before["config"]["explainer"] == EXPLAINERS[explainers].split(",")


# ---------------------------------------------------------------- which estimator it was

# How a config named the explainer, in the order in which they were written.
LEAST_SQUARES = {"recipe": {"pairs": {"kernelshap": 4}, "coalitions": 64, "ramp": 0.3}}
PROCESS = {"recipe": LEAST_SQUARES["recipe"] | {"reach": 1.6}}
PROCESS_AND_OPTIONS = {
    "constants": {"pairs": {"kernelshap": 4}, "coalitions": 64, "reach": 1.6},
    "ramp": 0.3,
}


def config_of(generation):
    """A config of a run against two explainers."""
    floors = {"floor": {"gradcam": 0.5, "kernelshap": 0.25}}
    return {"explainer": ["gradcam", "kernelshap"]} | floors | generation


def test_the_least_squares_keeps_its_name():
    config = checkpoints.current_config(config_of(LEAST_SQUARES))
    assert config["explainer"] == ["gradcam", "kernelshap"]
    assert config["floor"] == {"gradcam": 0.5, "kernelshap": 0.25}
    assert config["constants"] == {"pairs": {"kernelshap": 4}, "coalitions": 64}


@pytest.mark.parametrize("generation", [PROCESS, PROCESS_AND_OPTIONS])
def test_the_gaussian_process_is_named_gpshap(generation):
    config = checkpoints.current_config(config_of(generation))
    assert config["explainer"] == ["gradcam", "gpshap"]
    assert config["floor"] == {"gradcam": 0.5, "gpshap": 0.25}
    assert config["constants"] == {"pairs": {"gpshap": 4}, "coalitions": 64, "reach": 1.6}
    assert config["format"] == 1
    assert config["ramp"] == 0.3


def test_constants_of_explainers_that_were_not_trained_against_are_dropped():
    config = config_of(PROCESS_AND_OPTIONS) | {"explainer": ["gradcam"], "floor": {"gradcam": 0.5}}
    assert checkpoints.current_config(config)["constants"] == {"pairs": {}, "coalitions": 64}


def test_reading_an_old_config_leaves_it_as_it_was():
    config = config_of(PROCESS_AND_OPTIONS)
    before = copy.deepcopy(config)
    checkpoints.current_config(config)
    assert config == before


@pytest.mark.parametrize("generation", [LEAST_SQUARES, PROCESS, PROCESS_AND_OPTIONS])
def test_a_floor_that_is_one_number_stays_that(generation):
    config = checkpoints.current_config(config_of(generation) | {"floor": 0.5})
    assert config["floor"] == 0.5


@pytest.mark.parametrize("constants", [{"reach": 1.6}, {}])
def test_in_a_config_of_format_2_kernelshap_is_kernelshap(constants):
    config = config_of({"format": 2, "constants": constants})
    assert checkpoints.current_config(config)["explainer"] == ["gradcam", "kernelshap"]


def test_a_checkpoint_of_a_later_format_is_refused(checkpoint, tmp_path):
    """Also if it has lost a part that this code asks for."""
    later = put("config.format", checkpoints.FORMAT + 1)(checkpoint)
    torch.save(later, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="ckpt.pt was written by a newer version of this code$"):
        checkpoints.read(tmp_path / "ckpt.pt")
    torch.save({"config": later["config"]}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="by a newer version"):
        checkpoints.read(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("option", ABLATIONS)
def test_what_an_ablation_changes_is_in_the_checkpoint(option, of_now_and_former, tmp_path):
    now, _ = of_now_and_former(*ABLATIONS[option])
    default, _ = of_now_and_former()
    checkpoints.save(tmp_path / "ckpt.pt", now)
    config = checkpoints.read(tmp_path / "ckpt.pt")["config"]
    assert {key for key in config if config[key] != default["config"][key]} == {option}
