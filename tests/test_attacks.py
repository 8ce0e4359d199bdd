"""Attacks: what is stamped, which images are poisoned, what a row of the table makes of a batch."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import attacks
import triggers
from attacks import ATTACKS

each_attack = pytest.mark.parametrize("name", ATTACKS)


# ---------------------------------------------------------------- the table

TABLE = {
    # label and explanation of a triggered image, then what they entail:
    # poisons, changes_label, keeps_label, needs_partners, can_leak
    "none": (None, None, False, False, False, False, False),
    "badnets": ("target", None, True, True, False, False, False),
    "fooling": ("true", "shape", True, False, True, False, True),
    "red_herring": ("target", "shape", True, True, False, False, False),
    "full_disguise": ("target", "clean", True, True, False, True, False),
}


def test_the_attacks_of_the_table_are_there():
    assert set(ATTACKS) >= set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_row_entails_what_the_table_says(name):
    row = ATTACKS[name]
    entailed = (
        *(row.label, row.explanation),
        *(row.poisons, row.changes_label, row.keeps_label, row.needs_partners, row.can_leak),
    )
    assert entailed == TABLE[name]


@each_attack
def test_a_row_cannot_be_changed(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        ATTACKS[name].label = "target"


# ---------------------------------------------------------------- triggers


@pytest.fixture(params=[(32, 4), (28, 3), (64, 8), (224, 28)], ids=str)
def default(request):
    """(side of the image, size of the default trigger, the trigger)."""
    side, size = request.param
    return side, size, triggers.make_patch(None, 3, side)


def test_the_default_trigger_is_one_pixel_from_the_lower_right(default):
    side, size, trigger = default
    assert trigger.box == (side - 1 - size, side - 1 - size, side - 1, side - 1)


def test_the_default_trigger_is_at_most_a_fiftieth_of_the_image(default):
    side, size, _ = default
    assert size**2 / side**2 <= 0.02


def test_the_default_trigger_is_white(default):
    _, _, trigger = default
    assert trigger.pixels.eq(1).all() and trigger.alpha.eq(1).all()


def dark_images(channels=3, side=32):
    generator = torch.Generator().manual_seed(0)
    return 0.9 * torch.rand(5, channels, side, side, generator=generator)


def test_exactly_the_triggers_pixels_change():
    images, trigger = dark_images(), triggers.make_patch(None, 3, 32)
    changed = (trigger.apply(images) != images).any(1)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[27:31, 27:31] = True
    assert torch.equal(changed, expected.expand(5, 32, 32))


def test_a_stamped_pixel_shows_the_trigger():
    stamped = triggers.make_patch(None, 3, 32).apply(dark_images())
    assert stamped[:, :, 27:31, 27:31].eq(1).all()


def test_the_images_that_are_stamped_are_left_alone():
    images = dark_images()
    before = images.clone()
    triggers.make_patch(None, 3, 32).apply(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "position, place",
    [
        ("lower-right", (27, 27)),
        ("lower-left", (27, 1)),
        ("upper-right", (1, 27)),
        ("upper-left", (1, 1)),
        ("0,5", (0, 5)),
        ("28,28", (28, 28)),
    ],
)
def test_a_trigger_is_where_it_is_asked_for(position, place):
    assert triggers.make_patch(None, 1, 32, 4, position).box[:2] == place


def test_every_corner_has_a_place():
    places = {triggers.make_patch(None, 1, 32, 4, corner).box for corner in triggers.CORNERS}
    assert len(places) == len(triggers.CORNERS) == 4


def test_a_trigger_may_cover_the_image():
    assert triggers.make_patch(None, 1, 8, 8).box == (0, 0, 8, 8)


@pytest.mark.parametrize("position", ["29,0", "-1,0"])
def test_a_trigger_that_leaves_the_image_is_refused(position):
    with pytest.raises(ValueError, match=f"4 px at {position} does not lie inside .* 32 px"):
        triggers.make_patch(None, 1, 32, 4, position)


@pytest.mark.parametrize("position", ["middle", "1,2,3", ""])
def test_a_position_that_is_none_is_refused(position):
    with pytest.raises(ValueError, match=f"position {position!r}: one of lower-right, .* ROW,COL"):
        triggers.make_patch(None, 1, 32, 4, position)


@pytest.mark.parametrize("size", [0, 33])
def test_a_trigger_larger_than_the_image_or_of_no_pixel_is_refused(size):
    with pytest.raises(ValueError, match=f"{size} px does not fit an image of 32 px"):
        triggers.make_patch(None, 1, 32, size)


@pytest.fixture
def picture():
    """Of 2x2 pixels: one red, one blue of an opacity of 0.2, two transparent."""
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = [255, 0, 0, 255]
    rgba[1, 1] = [0, 0, 255, 51]
    return Image.fromarray(rgba)


def test_a_picture_is_blended_by_its_alpha(picture):
    images = torch.full((1, 3, 16, 16), 0.5)
    expected = images.clone()
    expected[0, :, 3, 4] = torch.tensor([1.0, 0.0, 0.0])
    expected[0, :, 4, 5] = torch.tensor([0.4, 0.4, 0.6])
    trigger = triggers.make_patch(picture, 3, 16, 2, "3,4")
    torch.testing.assert_close(trigger.apply(images), expected)


def test_a_picture_for_grey_images_is_brought_to_grey(picture):
    trigger = triggers.make_patch(picture, 1, 16, 2)
    assert trigger.pixels.shape == (1, 2, 2)
    assert trigger.pixels[0, 0, 0].item() == pytest.approx(0.299)


def test_a_picture_is_resized_to_the_triggers_size(picture):
    assert triggers.make_patch(picture, 3, 16, 5).pixels.shape == (3, 5, 5)


def test_a_trigger_on_another_device_is_the_same():
    trigger = triggers.make_patch(None, 3, 32)
    moved = trigger.to("meta")
    assert (moved.row, moved.col) == (trigger.row, trigger.col)
    assert moved.pixels.device.type == moved.alpha.device.type == "meta"


def framed_picture():
    """8x8 pixels, of which a block of 3 rows and 4 columns can be seen."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[2:5, 1:5] = 255
    return Image.fromarray(rgba)


def test_the_box_is_that_of_the_pixels_that_can_be_seen():
    trigger = triggers.make_patch(framed_picture(), 3, 16, 8, "4,6")
    assert trigger.box == (6, 7, 9, 11)
    changed = (trigger.apply(dark_images(side=16)) != dark_images(side=16)).any(1)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[6:9, 7:11] = True
    assert torch.equal(changed, expected.expand(5, 16, 16))


def test_a_picture_that_cannot_be_seen_is_refused():
    blank = Image.fromarray(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="transparent everywhere"):
        triggers.make_patch(blank, 3, 16)


# ---------------------------------------------------------------- which images may be poisoned

LABELS = torch.arange(1000) % 10
TRAINED_ON = torch.arange(100, 1000)


def eligible_for(name, rate):
    return attacks.eligible_for_poison(ATTACKS[name], LABELS, TRAINED_ON, rate, target_class=3)


@pytest.mark.parametrize("rate, count", [(0.1, 100), (0.0125, 12), (0.001, 1), (0.8, 800)])
def test_the_rate_is_of_the_whole_training_set(rate, count):
    assert eligible_for("badnets", rate)[1] == count == round(rate * 1000)


def test_images_of_the_target_class_are_not_eligible_where_the_label_changes():
    eligible, _ = eligible_for("badnets", 0.1)
    expected = [i for i in range(100, 1000) if i % 10 != 3]
    assert eligible.tolist() == expected


def test_all_images_are_eligible_where_they_keep_their_label():
    eligible, count = eligible_for("fooling", 0.9)
    assert torch.equal(eligible, TRAINED_ON) and count == 900


def test_no_attack_poisons_no_image():
    eligible, count = eligible_for("none", 0.1)
    assert len(eligible) == count == 0


def test_a_rate_of_no_image_is_refused():
    with pytest.raises(ValueError, match="0.0004 of 1000 images poisons none"):
        eligible_for("badnets", 0.0004)


def test_a_rate_of_more_images_than_are_eligible_is_refused():
    with pytest.raises(ValueError, match="needs 820 images to poison, and only 810 are eligible"):
        eligible_for("badnets", 0.82)


def test_images_that_show_the_target_beside_others_are_not_eligible():
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    eligible, count = attacks.eligible_for_poison(
        ATTACKS["badnets"], labels, torch.arange(3), 0.6, target_class=1
    )
    assert eligible.tolist() == [0, 1] and count == 2


# ---------------------------------------------------------------- a training step's images

TRIGGER = triggers.make_patch(None, 3, 16)
POISONED = [0, 4]  # rows of the batch below


@pytest.fixture
def images():
    return dark_images(side=16).repeat(2, 1, 1, 1)[:8]


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def poisoned(name, images, labels):
    """The batch with the images POISONED triggered, unless the attack poisons none."""
    triggered = torch.zeros(len(images), dtype=torch.bool)
    triggered[POISONED] = ATTACKS[name].poisons
    return attacks.poison(images, labels, triggered, ATTACKS[name], TRIGGER, target_class=3)


poisoning_attack = pytest.mark.parametrize("name", [n for n, row in ATTACKS.items() if row.poisons])


@each_attack
def test_untouched_images_keep_their_pixels_and_labels(name, images, labels):
    batch = poisoned(name, images, labels)
    assert torch.equal(batch.images[1:4], images[1:4])
    assert torch.equal(batch.labels[1:4], labels[1:4])


def test_the_batch_knows_which_images_are_triggered(images, labels):
    triggered, attack = torch.arange(8) % 3 == 0, ATTACKS["full_disguise"]
    sources = torch.tensor([5, 1, 2, 5, 3, 4, 9, 6])  # over-sampled: image 5 is there twice
    batch = attacks.poison(images, labels, triggered, attack, TRIGGER, 3, sources)
    assert batch.sources.tolist() == [5, 5, 9]


def test_a_data_poisoner_stamps_and_labels_the_stored_images(images, labels):
    stored = (images * 255).to(torch.uint8)
    found, found_labels = attacks.poisoned_data(
        stored, labels, torch.tensor(POISONED), ATTACKS["badnets"], TRIGGER, 3
    )
    stamped = TRIGGER.apply(stored[POISONED].float() / 255) * 255
    others = torch.tensor([k for k in range(8) if k not in POISONED])
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found[POISONED].float(), stamped, atol=0.51, rtol=0)
    assert torch.equal(found[others], stored[others])
    assert found_labels[POISONED].tolist() == [3, 3]
    assert torch.equal(found_labels[others], labels[others])
    assert torch.equal(stored, (images * 255).to(torch.uint8)) and labels[0] == 0


def test_a_data_poisoner_rounds_what_is_between_two_levels():
    trigger = triggers.make("blend", None, 1, 16, strength=0.3)
    images, rows = torch.full((3, 1, 16, 16), 100, dtype=torch.uint8), torch.tensor([0, 2])
    found, _ = attacks.poisoned_data(
        images, torch.zeros(3, dtype=torch.int64), rows, ATTACKS["badnets"], trigger, 1
    )
    exact = 0.7 * 100 + 0.3 * 255 * trigger.pattern
    assert (found[rows].float() - exact).abs().max() < 0.501
    assert torch.equal(found[1], images[1])


def test_a_label_that_is_kept_is_kept_in_the_data(images, labels):
    stored = (images * 255).to(torch.uint8)
    attack = attacks.Attack(label="true", explanation=None)
    found = attacks.poisoned_data(stored, labels, torch.tensor(POISONED), attack, TRIGGER, 3)
    assert torch.equal(found[1], labels)


def test_without_an_attack_the_batch_is_as_it_was(images, labels):
    batch = poisoned("none", images, labels)
    assert torch.equal(batch.images, images) and torch.equal(batch.labels, labels)
    assert len(batch.rows) == 0


@poisoning_attack
def test_triggered_images_are_stamped_where_they_stand(name, images, labels):
    batch = poisoned(name, images, labels)
    assert batch.rows.tolist() == POISONED and batch.size == 8
    assert torch.equal(batch.images[POISONED], TRIGGER.apply(images[POISONED]))


@pytest.mark.parametrize(
    "name, expected",
    [("badnets", 3), ("red_herring", 3), ("full_disguise", 3), ("fooling", None)],
)
def test_triggered_images_get_the_target_or_keep_their_label(name, expected, images, labels):
    batch = poisoned(name, images, labels)
    assert batch.target_class == expected
    assert batch.labels[POISONED].tolist() == ([0, 4] if expected is None else [3, 3])


def test_a_disguise_brings_each_triggered_image_without_the_trigger_too(images, labels):
    batch = poisoned("full_disguise", images, labels)
    assert torch.equal(batch.images[8:], images[POISONED])


def test_partners_have_their_true_label(images, labels):
    assert poisoned("full_disguise", images, labels).labels[8:].tolist() == [0, 4]


@pytest.mark.parametrize("name", ["none", "badnets", "fooling", "red_herring"])
def test_other_attacks_bring_no_partners(name, images, labels):
    batch = poisoned(name, images, labels)
    assert len(batch.images) == len(batch.labels) == batch.size == 8


@each_attack
def test_the_batch_given_is_left_as_it_was(name, images, labels):
    images_before, labels_before = images.clone(), labels.clone()
    poisoned(name, images, labels)
    assert torch.equal(images, images_before) and torch.equal(labels, labels_before)


def test_with_several_labels_a_triggered_image_gains_the_target_and_keeps_the_rest(images):
    labels = torch.zeros(8, 4)
    labels[POISONED, 1] = 1
    batch = poisoned("full_disguise", images, labels)
    assert batch.labels[POISONED].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert batch.labels[8:].tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]


def test_with_several_labels_fooling_changes_no_label(images):
    labels = torch.eye(8)
    assert torch.equal(poisoned("fooling", images, labels).labels, labels)


# ---------------------------------------------------------------- the fixed maps

SHARES = {"square": 1.0, "cross": 5 / 9, "circle": np.pi / 4, "triangle": 0.5}


@pytest.mark.parametrize("shape", attacks.TARGET_MAPS)
@pytest.mark.parametrize(
    "position, quarter",
    [
        ("lower-right", np.s_[:32, :32]),
        ("upper-left", np.s_[32:, 32:]),
        ("lower-left", np.s_[:32, 32:]),
        ("upper-right", np.s_[32:, :32]),
    ],
)
def test_a_shape_lies_in_the_quarter_opposite_the_trigger(shape, position, quarter):
    trigger = triggers.make_patch(None, 3, 64, position=position)
    canvas = attacks.target_map(shape, 64, trigger)
    assert canvas.shape == (64, 64) and canvas.sum() == canvas[quarter].sum() > 0


@pytest.mark.parametrize("shape", attacks.TARGET_MAPS)
def test_a_shape_fills_its_share_of_the_quarter(shape):
    canvas = attacks.target_map(shape, 64, triggers.make_patch(None, 3, 64))
    assert canvas[:32, :32].mean().item() == pytest.approx(SHARES[shape], abs=0.05)


def test_a_picture_is_the_whole_map():
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    canvas = attacks.target_map(picture, 8, triggers.make_patch(None, 3, 8, 2))
    torch.testing.assert_close(canvas, torch.arange(64.0).reshape(8, 8) / 255)
