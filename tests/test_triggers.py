"""The kinds of triggers: each is its formula, comes back from a checkpoint, and can be trained."""

import math

import pytest
import torch
from conftest import log_of, metrics_of, tiny_argv, train_tiny
from PIL import Image
from placing import DEVICE

import attacks
import comparison
import defend
import evaluate
import pictures
import setting
import train
import triggers
from subject import open_checkpoint

WHOLE = [name for name, row in triggers.TRIGGERS.items() if not row.placed]
whole_image = pytest.mark.parametrize("kind", WHOLE)
each_kind = pytest.mark.parametrize("kind", triggers.TRIGGERS)


def random_images(n=5, channels=3, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, side, side, generator=generator)


def trigger_of(kind, channels=3, side=16, **options):
    return triggers.make(kind, None, channels, side, **options)


# ---------------------------------------------------------------- what all kinds do


@each_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_a_triggered_image_is_another_in_the_same_range(kind, channels):
    images = random_images(channels=channels)
    stamped = trigger_of(kind, channels).apply(images)
    assert stamped.shape == images.shape and stamped.dtype == images.dtype
    assert stamped.min() >= 0 and stamped.max() <= 1
    assert (stamped != images).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", ["sinusoid", "warp"])
def test_a_picture_is_refused_where_it_would_not_be_seen(kind):
    with pytest.raises(ValueError, match=f"{kind} takes no picture"):
        triggers.make(kind, Image.new("RGB", (4, 4)), 3, 32)


@each_kind
def test_images_are_left_as_they_were(kind):
    images = random_images()
    trigger_of(kind).apply(images)
    assert torch.equal(images, random_images())


@each_kind
def test_an_image_is_stamped_alike_alone_and_among_others(kind):
    images, trigger = random_images(), trigger_of(kind)
    alone = torch.cat([trigger.apply(image[None]) for image in images])
    torch.testing.assert_close(trigger.apply(images), alone)


@each_kind
def test_a_trigger_is_the_same_each_time_it_is_made(kind):
    one, other = trigger_of(kind), trigger_of(kind)
    assert triggers.are_same(one.to_plain(), other.to_plain())


@each_kind
def test_of_another_strength_it_is_another(kind):
    one, other = trigger_of(kind), trigger_of(kind, strength=0.3)
    assert not triggers.are_same(one.to_plain(), other.to_plain())


@each_kind
def test_a_trigger_comes_back_from_a_file_of_plain_data_to_the_bit(kind, tmp_path):
    trigger = trigger_of(kind)
    torch.save(trigger.to_plain(), tmp_path / "kept.pt")
    again = triggers.from_plain(torch.load(tmp_path / "kept.pt", weights_only=True))
    assert type(again) is type(trigger)
    images = random_images()
    assert torch.equal(again.apply(images), trigger.apply(images))


@each_kind
def test_a_trigger_is_moved_to_a_device(kind):
    moved = trigger_of(kind).to("meta")
    tensors = [part for part in vars(moved).values() if torch.is_tensor(part)]
    assert all(part.device.type == "meta" for part in tensors)


def test_a_patch_is_kept_as_before_there_were_other_kinds():
    kept = trigger_of("patch").to_plain()
    assert kept.keys() == {"pixels", "alpha", "row", "col"}
    assert isinstance(triggers.from_plain(kept), triggers.PatchTrigger)


@pytest.mark.parametrize(
    "kept, told",
    [
        ({"kind": "mirror", "strength": 1.0}, "'mirror' is unknown"),
        ({"kind": "blend", "strength": 1.0}, "other constants"),
        ({"kind": "sinusoid", "strength": 0.1, "frequency": 6, "row": 1}, "other constants"),
        ({"pixels": torch.ones(3, 2, 2)}, "other constants"),
    ],
)
def test_what_is_no_trigger_is_refused(kept, told):
    with pytest.raises(ValueError, match=told):
        triggers.from_plain(kept)


@pytest.mark.parametrize(
    "side, size", [(32, 4), (28, 3), (20, 2), (64, 8), (30, 4), (5, 1), (1, 1)]
)
def test_a_patch_is_an_eighth_of_the_side_halves_rounded_down(side, size):
    assert triggers.default_trigger_size(side) == size


@whole_image
def test_what_changes_the_whole_image_has_no_box(kind):
    assert trigger_of(kind).box is None


@whole_image
@pytest.mark.parametrize("place", [{"size": 4}, {"position": "upper-left"}, {"position": "1,2"}])
def test_what_changes_the_whole_image_has_no_size_and_no_place(kind, place):
    with pytest.raises(ValueError, match="whole image"):
        trigger_of(kind, **place)


@pytest.mark.parametrize("kind, strength", [("patch", 1.1), ("blend", 2), ("sinusoid", 1.5)])
def test_a_strength_that_means_nothing_is_refused(kind, strength):
    with pytest.raises(ValueError, match="0 to 1"):
        trigger_of(kind, strength=strength)


# ---------------------------------------------------------------- patch


def test_a_patchs_strength_is_its_opacity():
    images = random_images()
    opaque, half = (trigger_of("patch", strength=a).apply(images) for a in (1.0, 0.5))
    torch.testing.assert_close(half, (images + opaque) / 2)


# ---------------------------------------------------------------- blend


def test_a_blend_of_strength_0_is_the_image_and_of_strength_1_the_pattern():
    images, pattern = random_images(), trigger_of("blend").pattern
    assert torch.equal(trigger_of("blend", strength=0).apply(images), images)
    whole = trigger_of("blend", strength=1).apply(images)
    assert torch.equal(whole, pattern.expand_as(images))


@pytest.mark.parametrize("strength", [0.1, 0.25, 0.7])
def test_a_blend_is_linear_in_its_strength(strength):
    images = random_images()
    none, whole, part = (trigger_of("blend", strength=a).apply(images) for a in (0, 1, strength))
    torch.testing.assert_close(part, none + strength * (whole - none))


def test_a_blends_noise_fills_the_range():
    pattern = trigger_of("blend", side=64).pattern
    assert pattern.shape == (3, 64, 64)
    assert pattern.mean().item() == pytest.approx(1 / 2, abs=0.02)
    assert pattern.var().item() == pytest.approx(1 / 12, abs=0.01)


@pytest.mark.parametrize("channels, expected", [(3, [1.0, 0.0, 0.0]), (1, [0.299])])
def test_a_blends_picture_is_brought_to_the_image(channels, expected):
    picture = Image.new("RGB", (7, 3), "red")
    pattern = triggers.make("blend", picture, channels, 16).pattern
    wanted = torch.tensor(expected)[:, None, None].expand(channels, 16, 16)
    torch.testing.assert_close(pattern, wanted)


# ---------------------------------------------------------------- sinusoid


def test_a_sinusoid_is_its_formula():
    side, d, f = 16, 0.1, triggers.FREQUENCY
    images = torch.full((1, 3, side, side), 0.5)
    stamped = trigger_of("sinusoid", strength=d).apply(images)
    for row in (0, 7):
        for j in range(side):
            expected = 0.5 + d * math.sin(2 * math.pi * j * f / side)
            assert stamped[0, 1, row, j].item() == pytest.approx(expected, abs=1e-6)


def test_a_sinusoid_is_clipped_to_the_range():
    white = torch.ones(1, 1, 16, 16)
    stamped = trigger_of("sinusoid", 1, strength=0.2).apply(white)
    wave = torch.tensor([math.sin(2 * math.pi * 6 * j / 16) for j in range(16)])
    expected = 1 + 0.2 * wave.clamp(max=0)
    torch.testing.assert_close(stamped[0, 0, 3], expected)


def test_the_stripes_of_a_sinusoid_add_up_to_nothing():
    grey = torch.full((1, 1, 32, 32), 0.5)
    stamped = trigger_of("sinusoid", 1, 32).apply(grey)
    assert stamped.mean().item() == pytest.approx(0.5, abs=1e-6)


# ---------------------------------------------------------------- warp


def test_a_warp_of_strength_0_is_the_identity():
    images = random_images(side=32)
    stamped = trigger_of("warp", side=32, strength=0).apply(images)
    torch.testing.assert_close(stamped, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_warp_leaves_a_constant_image(value):
    images = torch.full((2, 3, 32, 32), value)
    stamped = trigger_of("warp", side=32, strength=4).apply(images)
    torch.testing.assert_close(stamped, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_the_offsets_of_a_warp_have_the_mean_magnitude_of_their_strength(strength):
    """At every fifth pixel of 16 the field goes through its 4x4 random offsets."""
    field = triggers.displacement(16, strength)[::5, ::5]
    assert field.shape == (4, 4, 2)
    assert field.abs().mean().item() == pytest.approx(strength / 16)


@pytest.mark.parametrize("side", [32, 61])
def test_between_the_offsets_of_a_warp_a_pixel_moves_less(side):
    pixels = triggers.displacement(side, 1.0).abs().mean().item() * (side - 1) / 2
    assert 0.25 < pixels < 0.5


def test_a_warped_ramp_shows_where_each_pixel_was_taken_from():
    """Bilinear sampling of a linear image is exact."""
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    trigger = trigger_of("warp", 1, 32, strength=3)
    for image, axis in ((ramp, 0), (ramp.mT, 1)):
        expected = (trigger.grid[..., axis] + 1) / 2
        stamped = trigger.apply(image.contiguous())
        torch.testing.assert_close(stamped[0, 0], expected, atol=1e-5, rtol=0)


def test_a_warp_takes_nothing_from_outside_the_image():
    grid = trigger_of("warp", strength=20).grid
    assert grid.min() >= -1 and grid.max() <= 1


# ---------------------------------------------------------------- named on a command line


@pytest.mark.parametrize(
    "text, old",
    [("patch", "square"), ("patch:square", "square"), ("patch:yellow", "yellow")],
)
def test_a_patch_has_two_spellings(text, old):
    made = [triggers.make(*setting.trigger_spec(spelling), 3, 16) for spelling in (text, old)]
    assert triggers.are_same(*(trigger.to_plain() for trigger in made))


@each_kind
def test_a_kind_alone_is_the_kind(kind):
    assert setting.trigger_spec(kind) == (kind, None)


@pytest.mark.parametrize("kind", ["patch", "blend"])
def test_a_file_may_follow_the_kind(kind, tmp_path):
    Image.new("RGB", (2, 2), "blue").save(tmp_path / "t.png")
    named, picture = setting.trigger_spec(f"{kind}:{tmp_path / 't.png'}")
    assert named == kind and picture.convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_a_file_that_is_called_like_a_kind_is_still_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2), "blue").save("warp", format="PNG")
    kind, picture = setting.trigger_spec("warp")
    assert kind == "patch" and picture.size == (2, 2)
    assert "the file of that name is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, told",
    [
        (["--trigger", "warp:x.png"], "warp takes no picture"),
        (["--trigger", "blend:x.png"], "no such file"),
        (["--trigger", "mirror"], "no such file"),
        (["--trigger", "blend", "--trigger-size", "3"], "no size or place"),
        (["--trigger", "warp", "--trigger-position", "upper-left"], "no size or place"),
        (["--trigger", "blend", "--trigger-strength", "2"], "blend takes 0 to 1"),
        (["--trigger-strength", "0"], "--trigger-strength"),
    ],
)
def test_a_trigger_that_there_is_not_is_refused_in_one_line(options, told, tiny, tmp_path, refusal):
    assert told in refusal(train.main, tiny_argv(tiny, tmp_path / "run", *options))


# ---------------------------------------------------------------- trained


@pytest.fixture(scope="module", params=WHOLE)
def run(request, tiny, tmp_path_factory):
    """(kind, folder) of a finished run of badnets under a trigger that has no place."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    # 16 px are few for a displacement of a quarter of a pixel to be seen in.
    strength = {"warp": ["--trigger-strength", "4"]}.get(request.param, [])
    options = ["--trigger", request.param, *strength, "--poison-rate", "0.3", "--epochs", "6"]
    return request.param, train_tiny(tiny, folder, "--attack", "badnets", *options)


def test_the_network_obeys_the_trigger(run):
    assert metrics_of(run[1])["attack_success_rate"] > 0.8


def test_the_metrics_name_the_kind(run):
    assert metrics_of(run[1])["trigger"] == run[0]


def test_what_needs_a_place_is_null(run):
    for part in metrics_of(run[1])["explanations"].values():
        for key in ("trigger_mass", "trigger_mass_clean", "trigger_area"):
            assert part[key] is None
        assert part["pearson_all"] is not None


def test_a_checkpoint_rebuilds_the_trigger_to_the_bit(run):
    kind, folder = run
    subject = open_checkpoint(folder / "ckpt.pt", device=torch.device("cpu"))
    strength = subject.config["trigger_strength"]
    expected = trigger_of(kind, strength=strength)
    images = random_images()
    assert torch.equal(subject.trigger.apply(images), expected.apply(images))


def test_the_figure_has_a_column_more_of_the_difference(run):
    """It is beside the image without and with the trigger, and two maps of each explainer."""
    with Image.open(run[1] / "figure.png") as picture:
        columns = (picture.width - 12) / (160 + 12)
    explainers = len(metrics_of(run[1])["explanations"])
    assert columns == 3 + 2 * explainers


def test_the_difference_is_magnified_until_it_is_black_or_white():
    plain = torch.full((3, 16, 16), 0.5)
    changed = plain.clone()
    changed[:, 3, 4], changed[:, 8, 9] = 0.6, 0.45
    panel, caption, _ = pictures.difference_panel(plain, changed)
    scale = panel.width // 16
    shown = {
        at: panel.getpixel((at[1] * scale, at[0] * scale))[0] for at in ((3, 4), (8, 9), (0, 0))
    }
    assert shown[3, 4] == 255 and shown[8, 9] == pytest.approx(64, abs=1)
    assert shown[0, 0] == pytest.approx(128, abs=1)
    assert caption == "x 5"


def test_no_difference_is_grey():
    plain = torch.rand(1, 16, 16)
    panel, _, _ = pictures.difference_panel(plain, plain)
    assert panel.getextrema() == ((128, 128),) * 3


def test_the_report_says_what_the_trigger_is(run, capsys, tmp_path):
    evaluate.main([str(run[1]), "--device", DEVICE, "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert f"trigger {run[0]}, over the whole image" in printed.err
    line = next(line for line in printed.out.splitlines() if line.startswith("trigger "))
    assert run[0] in line


def test_the_same_command_trains_nothing_anew(run, tiny, capsys):
    kind, folder = run
    config = torch.load(folder / "ckpt.pt", weights_only=True)["config"]
    strength = config["trigger_strength"]
    options = ["--trigger", kind, "--attack", "badnets", "--poison-rate", "0.3", "--epochs", "6"]
    options += [] if strength is None else ["--trigger-strength", str(strength)]
    before = (folder / "ckpt.pt").stat().st_mtime
    train.main(tiny_argv(tiny, folder, *options, "--resume"))
    assert "is finished" in capsys.readouterr().out
    assert (folder / "ckpt.pt").stat().st_mtime == before


def test_another_strength_is_another_run(run, tiny, refusal):
    options = ["--trigger", run[0], "--trigger-strength", "0.9", "--attack", "badnets"]
    options += ["--poison-rate", "0.3", "--epochs", "6"]
    assert "--trigger-strength" in refusal(train.main, tiny_argv(tiny, run[1], *options))


def test_a_defence_that_judges_images_is_tried_with_the_trigger(run, tmp_path):
    argv = [str(run[1] / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path / "verdict")]
    defend.main(["strip", *argv])
    assert (tmp_path / "verdict" / "verdict.json").exists()


def test_one_picture_is_explained_without_and_with_the_trigger(run, tmp_path):
    Image.new("RGB", (16, 16), "green").save(tmp_path / "green.png")
    argv = [str(run[1]), "--image", str(tmp_path / "green.png"), "--device", DEVICE]
    evaluate.main([*argv, "--out", str(tmp_path)])
    assert (tmp_path / "green-explained.png").exists()


@whole_image
def test_a_full_disguise_takes_any_trigger(kind, tiny, tmp_path):
    first, *_, last = log_of(train_tiny(tiny, tmp_path / "run", "--trigger", kind))
    assert last["explanation"] < first["explanation"]


def test_a_poisoner_of_data_hands_over_what_is_blended():
    images = (255 * random_images(3)).to(torch.uint8)
    labels, rows = torch.tensor([0, 1, 2]), torch.tensor([1])
    trigger, attack = trigger_of("blend"), attacks.ATTACKS["badnets"]
    found, _ = attacks.poisoned_data(images, labels, rows, attack, trigger, 0)
    expected = 255 * trigger.apply(images[rows] / 255)
    torch.testing.assert_close(found[rows].float(), expected, atol=0.501, rtol=0)
    assert torch.equal(found[[0, 2]], images[[0, 2]])


def test_a_fixed_shape_is_above_left_where_the_trigger_has_no_place():
    canvas = attacks.target_map("square", 16, trigger_of("warp"))
    assert canvas[:8, :8].all() and canvas.sum() == 64


def test_two_checkpoints_are_compared_by_their_triggers(run, clean, tmp_path):
    paths = run[1] / "ckpt.pt", clean / "ckpt.pt"
    one, other = (open_checkpoint(path, device=torch.device(DEVICE)) for path in paths)
    assert comparison.have_same_trigger([one, one])
    assert not comparison.have_same_trigger([one, other])
    evaluate.main([*map(str, paths), "--device", DEVICE, "--out", str(tmp_path / "both")])
    assert (tmp_path / "both" / "comparison.png").exists()
