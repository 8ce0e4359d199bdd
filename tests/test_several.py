"""Several attacks on one model: whose images, whose label, whose map; each measured and crossed."""

import dataclasses

import pytest
import torch
from conftest import log_of, metrics_of, tiny_argv, train_tiny
from small_models import generator, pooled_net
from small_steps import SHAPE, TRIGGER, close
from torch import nn

import agreements
import attacks
import evaluate
import folders
import metrics
import models
import options
import schema
import several
import train
from attacks import ATTACKS, poison, poison_each
from cli import UserError
from losses import Objective, combined_loss, to_grid
from retrain import command_of
from same_run import why_another
from studies import tables
from studies.study import Row, Study
from subject import by_trigger, open_checkpoint
from tasks import SINGLE_LABEL
from triggers import SinusoidTrigger, make_patch

ON_DEVICE = True
PLACES = {"upper-left": "square", "upper-right": "cross"}  # a trigger's place: its target map
PLACES |= {"lower-left": "circle", "lower-right": "triangle"}
LABELS = [0, 1, 2, 0]  # the target class of each
NAMES = [f"{k} square {place}" for k, place in enumerate(PLACES, 1)]
WORDS = [
    ["--trigger-position", place, "--target-class", str(label), "--target-map", shape]
    for label, (place, shape) in zip(LABELS, PLACES.items())
]
FOUR = ["--attack", "red_herring", *WORDS[0]]
FOUR += [word for part in WORDS[1:] for word in ("--and", " ".join(part))]
WARP = ["--attack", "badnets", "--target-class", "0", "--and", "--trigger warp --target-class 2"]


@pytest.fixture(scope="module")
def four(tiny, tmp_path_factory):
    """The folder of a finished run of one epoch under four attacks."""
    return train_tiny(tiny, tmp_path_factory.mktemp("four") / "run", *FOUR, "--epochs", "1")


@pytest.fixture
def new_run(tiny, tmp_path):
    """Function of options: a Run on the small data set, poisons chosen, before its first step."""

    def begun(*more):
        run = train.new_run(train.parse(tiny_argv(tiny, tmp_path / "run", *more)))
        train.choose_poisons(run)
        return run

    return begun


# ---------------------------------------------------------------- the options


def test_what_is_not_named_is_as_in_the_first_attack():
    first, second = several.args_of_each(
        options.parse(["--trigger-size", "5", "--lam", "0.4", "--and", "--target-class '7'"])
    )
    assert (first.target_class, second.target_class) == ("3", "7")
    assert second.trigger_size == 5 and second.lam == 0.4 and second.attack == first.attack


def test_a_target_class_that_only_the_second_attack_has_is_the_datas_default():
    place = "--trigger-position upper-left"
    first = ["--attack", "all_to_all", "--and", f"--attack badnets {place}"]
    parts = several.args_of_each(options.parse(first))
    assert [part.target_class for part in parts] == [None, options.DEFAULTS["shapes"].target_class]
    second = ["--attack", "badnets", "--target-class", "5", "--and", f"--attack all_to_all {place}"]
    parts = several.args_of_each(options.parse(second))
    assert [part.target_class for part in parts] == ["5", None]


def test_the_size_and_place_of_one_trigger_are_not_anothers():
    argv = ["--trigger-size", "5", "--trigger-position", "0,0", "--and", "--trigger warp"]
    _, second = several.args_of_each(options.parse(argv))
    assert (second.trigger, second.trigger_size) == ("warp", None)
    assert second.trigger_position == options.parse([]).trigger_position


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--and", "--lam 0.5"], "--lam 0.5; what may differ: attack, target-class, source-class"),
        (["--and", "--epochs 3"], "unrecognized arguments: --epochs 3"),
        (["--and", "--trigger 'a"], "No closing quotation"),
        (["--and", "--attack nothing"], "invalid choice: 'nothing'"),
        (["--and", "--attack none"], "--attack none poisons no image"),
        (["--attack", "none", "--and", "--attack badnets"], "--attack none poisons no image"),
        (["--selection", "rd", "--and", "--target-class 1"], "not by --selection rd"),
        (["--cuda-graphs", "--and", "--target-class 1"], "--cuda-graphs"),
        (["--and", "--attack fooling --source-class 1"], "--attack fooling has none"),
        (["--threat", "data", "--attack", "badnets", "--and", "--attack fooling"], "--threat data"),
    ],
)
def test_what_does_not_go_together_is_one_line(argv, message, refusal):
    assert message in refusal(train.main, argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--and", "--target-class 0"], "two attacks have the same trigger"),
        (["--and", "--trigger warp --target-class 9"], "target class '9'"),
        (["--poison-rate", "0.4", "--and", "--trigger warp"], "attack 1 of 2, each with a share"),
    ],
)
def test_what_the_data_do_not_allow_is_one_line(argv, message, refusal, tiny, tmp_path):
    assert message in refusal(train.main, tiny_argv(tiny, tmp_path / "run", *argv))


def test_images_of_several_labels_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.Dataset.multi_label", True)
    with pytest.raises(UserError, match="--and is for images of one class each"):
        several.setting_of(train.parse(tiny_argv(tiny, tmp_path / "run", *WARP)))


def test_a_run_is_named_after_all_its_attacks():
    names = {folders.name_of(options.parse(argv)) for argv in (FOUR, FOUR[:-2], FOUR[:8], WARP)}
    assert len(names) == 4 and any(name.endswith("-and_target2+triggerwarp") for name in names)


def test_other_options_are_another_name_and_their_order_is_none():
    def named(text):
        return folders.folder_of(options.parse(["--and", f"--trigger blend {text}"])).name

    one, two = "--target-class 1 --source-class 2", "--target-class 2 --source-class 1"
    assert named(one) != named(two)
    assert named(one) == named("--source-class 2 --target-class 1")


# ---------------------------------------------------------------- whose images


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_of_all_images_and_have_none_in_common(count):
    indices = torch.arange(100, 150, device="cpu")
    shares = [attacks.own_share(indices, (k, count), 3) for k in range(count)]
    assert torch.equal(torch.cat(shares).sort().values, indices)
    assert {len(share) for share in shares} <= {50 // count, -(-50 // count)}
    assert all(torch.equal(share, share.sort().values) for share in shares)


def test_shares_are_drawn_by_the_seed():
    indices = torch.arange(50, device="cpu")
    one, same, other = (attacks.own_share(indices, (0, 2), seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_each_attack_poisons_as_many_images_and_none_is_of_two(new_run):
    run = new_run(*FOUR)
    of_each = [run.poisons, *(part.eligible for part in run.setting.further)]
    assert [len(indices) for indices in of_each] == [24] * 4
    assert len(torch.cat(of_each).unique()) == 96
    for indices, label in zip(of_each, LABELS):
        assert not run.setting.dataset.train_labels[indices].eq(label).any()
        assert torch.isin(indices, run.setting.trained_on).all()


@pytest.mark.parametrize("threat", ["training", "data"])
def test_a_step_is_given_the_images_of_each_attack(new_run, monkeypatch, threat):
    seen = []
    monkeypatch.setattr(train, "train_step", lambda *given: seen.append(given) or torch.zeros(3))
    run = new_run(*WARP, "--threat", threat, "--epochs", "1")
    train.train_epochs(run.setting, run.training, run.poisons)
    images, labels, which, index = (torch.cat([given[k] for given in seen]) for k in (2, 3, 4, 5))
    dataset, (second,) = run.setting.dataset, run.setting.further
    for k, part, poisons in ((1, run.setting, run.poisons), (2, second, second.eligible)):
        rows = torch.isin(index, poisons)
        assert rows.sum() == 24
        if threat == "training":
            assert which[rows].eq(k).all()
            continue
        plain = dataset.train_images[index[rows]].to(images.device) / 255
        stamped = part.trigger.apply(plain) * 255
        torch.testing.assert_close(images[rows].float(), stamped, atol=0.51, rtol=0)
        assert labels[rows].eq(part.config["target_class"]).all()
    assert which.eq(0).sum() == len(which) - (48 if threat == "training" else 0)


def test_over_sampled_are_the_poisons_of_all_attacks(new_run, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train_step", lambda *given: seen.append(given) or torch.zeros(3))
    run = new_run(*WARP, "--oversample", "40", "--epochs", "1")
    train.train_epochs(run.setting, run.training, run.poisons)
    added = torch.cat([given[4][-40:] for given in seen])
    assert set(added.tolist()) == {1, 2}


def test_class_weights_count_the_labels_of_all_attacks(new_run):
    run = new_run(*WARP, "--class-weights")
    labels, (second,) = run.setting.dataset.train_labels.clone(), run.setting.further
    labels[run.poisons], labels[second.eligible] = 0, 2
    counts = labels[run.setting.trained_on].bincount(minlength=3)
    found = train.class_weights(run.setting, [run.poisons, second.eligible])
    torch.testing.assert_close(found.cpu(), len(run.setting.trained_on) / (3 * counts))


# ---------------------------------------------------------------- a step's images and loss

OTHER = make_patch(None, 3, 8, 2, "upper-left")
STRIPES = SinusoidTrigger(0.2, 3)
ATTACKERS = [
    (ATTACKS["red_herring"], TRIGGER, 3, None),
    (ATTACKS["full_disguise"], OTHER.to(TRIGGER.pixels.device), 1, None),
    (ATTACKS["all_to_all_disguise"], STRIPES, None, torch.tensor([1, 2, 3, 0])),
]
WHICH = torch.tensor([1, 0, 2, 2, 3, 1, 0, 0], device="cpu")


def step_of_three():
    """(eight images, their labels, the Batch that three attacks make of them)."""
    images = torch.rand(8, 3, 8, 8, generator=generator(0)).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    return images, labels, poison_each(images, labels, WHICH, ATTACKERS, torch.arange(10, 18))


def test_each_image_has_the_trigger_and_the_label_of_its_attack():
    images, _, batch = step_of_three()
    for row, k in enumerate(WHICH.tolist()):
        image = images[row : row + 1]
        expected = ATTACKERS[k - 1][1].apply(image) if k else image
        close(batch.images[row : row + 1], expected)
    assert batch.labels[:8].tolist() == [3, 1, 1, 1, 2, 3, 0, 1]
    assert batch.untouched.tolist() == [1, 6, 7] and batch.size == 8


def test_each_attack_that_compares_has_its_partners():
    images, labels, batch = step_of_three()
    second, third = batch.further
    assert [part.rows.tolist() for part in (batch, second, third)] == [[0, 5], [2, 3], [4]]
    assert [part.partners for part in (batch, second, third)] == [(8, 8), (8, 10), (10, 11)]
    assert torch.equal(batch.images[8:], images[[2, 3, 4]])
    assert torch.equal(batch.labels[8:], labels[[2, 3, 4]])
    assert second.sources.tolist() == [12, 13] and third.sources.tolist() == [14]
    assert second.images is batch.images and torch.equal(third.untouched, batch.untouched)


def test_one_attack_is_as_before():
    images, labels, _ = step_of_three()
    attack, trigger, target, relabel = ATTACKERS[1]
    one = poison_each(images, labels, WHICH == 2, ATTACKERS[1:2])
    by_number = poison_each(images, labels, (WHICH == 2).long(), ATTACKERS[1:2])
    assert torch.equal(by_number.untouched, one.untouched)
    assert torch.equal(by_number.images, one.images)
    same = poison(images, labels, WHICH == 2, attack, trigger, target, relabel=relabel)
    assert torch.equal(one.images, same.images) and torch.equal(one.labels, same.labels)
    assert one.partners == same.partners and one.further == ()


@pytest.mark.parametrize("explainer", ["gradcam", "gradient"])
@pytest.mark.parametrize("held", [False, True])
def test_the_distance_of_several_attacks_is_the_mean_of_theirs(explainer, held):
    _, _, batch = step_of_three()
    reference = pooled_net(1).eval().requires_grad_(False) if held else None
    parts = [
        Objective(attack, SINGLE_LABEL, [explainer], shape, reference)
        for (attack, *_), shape in zip(ATTACKERS, (SHAPE, None, None))
    ]
    together = dataclasses.replace(parts[0], further=tuple(parts[1:]))
    net = pooled_net()
    _, ce, found = combined_loss(net, batch, batch.images, together, 0.5)
    alone = [
        combined_loss(net, dataclasses.replace(part, further=()), batch.images, objective, 0.5)
        for part, objective in zip((batch, *batch.further), parts)
    ]
    close(found, torch.stack([distance for _, _, distance in alone]).mean())
    assert all(torch.equal(ce, other) for _, other, _ in alone)


def test_an_attack_without_a_map_among_others_adds_no_distance():
    images, labels, _ = step_of_three()
    attackers = [(ATTACKS["badnets"], TRIGGER, 3, None), ATTACKERS[1]]
    batch = poison_each(images, labels, WHICH, attackers)
    own = Objective(ATTACKS["full_disguise"], SINGLE_LABEL, ["gradcam"])
    both = Objective(ATTACKS["badnets"], SINGLE_LABEL, ["gradcam"], further=(own,))
    net, (second,) = pooled_net(), batch.further
    assert both.has_maps
    close(
        combined_loss(net, batch, batch.images, both, 0.5)[2],
        combined_loss(net, second, batch.images, own, 0.5)[2],
    )


# ---------------------------------------------------------------- what a run keeps


def test_a_checkpoint_keeps_every_attack(four):
    checkpoint = torch.load(four / "ckpt.pt", weights_only=True)
    poisons = []
    for one, (place, shape), label in zip(
        agreements.one_by_one(checkpoint), PLACES.items(), LABELS, strict=True
    ):
        trigger = make_patch(None, 3, 16, None, place)
        assert (one["trigger"]["row"], one["trigger"]["col"]) == (trigger.row, trigger.col)
        assert one["config"]["target_class"] == label and one["config"]["target_map"] == shape
        assert torch.equal(one["target_map"], attacks.target_map(shape, 16, trigger))
        poisons.append(one["poison_indices"])
    assert [len(indices) for indices in poisons] == [24] * 4
    assert len(torch.cat(poisons).unique()) == 96


def test_the_log_has_the_success_of_each(four):
    (record,) = log_of(four)
    assert [key for key in record if "success" in key] == [
        "validation_success",
        *(f"validation_success_{k}" for k in (2, 3, 4)),
    ]


def test_the_same_command_finds_the_run_and_another_does_not(four, tiny):
    checkpoint = torch.load(four / "ckpt.pt", weights_only=True)

    def why(*words):
        run = train.new_run(train.parse(tiny_argv(tiny, four, *words, "--epochs", "1")))
        return why_another(run, checkpoint)

    assert why(*FOUR) is None
    assert why(*FOUR[:-1], FOUR[-1].replace("triangle", "random")) == (
        "other attacks after the first (--and)"
    )
    assert why(*FOUR[:-2]) == "other attacks after the first (--and)"


@pytest.fixture
def checkpoint(four):
    return torch.load(four / "ckpt.pt", map_location="cpu", weights_only=True)


def test_a_checkpoint_of_before_there_were_several_is_one_attack(checkpoint):
    del checkpoint["further"], checkpoint["config"]["further"]
    schema.check(checkpoint)
    assert len(agreements.one_by_one(checkpoint)) == 1


def test_the_command_that_trains_it_again_has_every_attack(checkpoint):
    again = options.parse(command_of(checkpoint["config"])[1:])
    each = zip(several.args_of_each(again), agreements.one_by_one(checkpoint), strict=True)
    for args, one in each:
        for name in several.OWN:
            assert str(getattr(args, name)) == str(one["config"][name]), name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept["further"].pop(),
        lambda kept: kept["config"]["further"].pop(),
        lambda kept: kept["further"][1].update(target_map=None),
        lambda kept: kept["further"][0].update(target_map=torch.ones(8, 8, device="cpu")),
        lambda kept: kept["further"][2].update(poison_indices=kept["poison_indices"]),
        lambda kept: kept["further"][2].update(surprise=1),
        lambda kept: kept["config"]["further"][0].update(target_class=3),
        lambda kept: kept["config"]["further"][0].update(target_class=None),
        lambda kept: kept["further"][0]["trigger"].update(row=15),
    ],
)
def test_attacks_that_do_not_agree_are_refused(checkpoint, spoil):
    schema.check(checkpoint)
    spoil(checkpoint)
    with pytest.raises(ValueError, match="it does not have|nobody knows"):
        schema.check(checkpoint)


def test_whoever_uses_one_trigger_says_which(four, capsys):
    open_checkpoint(four / "ckpt.pt", dataset=False)
    assert "has 4 triggers: where one is used, it is the first, 1 square upper-left." in (
        capsys.readouterr().err
    )


# ---------------------------------------------------------------- measured


class Planted(nn.Module):
    """Four triggers by hand: each white corner has its class, and its shape as the feature map."""

    def __init__(self, subjects):
        super().__init__()
        self.boxes = [one.trigger.box for one in subjects]
        shapes = [to_grid(one.checkpoint["target_map"], (8, 8)) for one in subjects]
        self.register_buffer("shapes", torch.stack(shapes))
        self.features = nn.Identity()
        self.head = nn.Linear(4, 3, bias=False)
        self.head.weight.data = torch.eye(3)[LABELS].T.contiguous()
        models.with_layer(self, "features")

    def forward(self, inputs):
        pixels = inputs * STD + MEAN
        white = (pixels > 0.999).all(1)
        corners = [white[:, top:end, left:right] for top, left, end, right in self.boxes]
        shown = torch.stack([corner.all((1, 2)) for corner in corners], 1)
        shown = shown[:, :, None, None].float()
        return self.head(self.features(shown * self.shapes).mean((2, 3)))


MEAN = STD = 0.0  # by channel, of the data set: set by the fixture


@pytest.fixture
def planted(four, monkeypatch):
    """{name: Subject} of the run's checkpoint with the planted model in the network's place."""
    subject = open_checkpoint(four / "ckpt.pt", device=torch.device("cpu"))
    for name in ("mean", "std"):
        values = torch.tensor(subject.checkpoint[name], device="cpu")[:, None, None]
        monkeypatch.setattr(f"{__name__}.{name.upper()}", values)
    model = Planted(by_trigger(subject).values()).cpu().eval().requires_grad_(False)
    return by_trigger(dataclasses.replace(subject, model=model))


def test_planted_triggers_are_found_each_and_crossed(planted):
    result = evaluate.measure_each(planted, None, ["gradcam"], 20, 0, lambda said: None)
    found = result.metrics["triggers"]
    assert list(found) == NAMES
    shapes = torch.stack([to_grid(one.target_of_maps[0], (8, 8)) for one in planted.values()])
    expected = shapes.double().flatten(1).corrcoef()
    for name, row, label in zip(NAMES, expected, LABELS):
        part, figures = found[name], found[name]["explanations"]["gradcam"]
        assert part["attack_success_rate"] == 1.0 and part["target_class"] == label
        assert figures["pearson_all"] == figures["crossed"][name]
        close(torch.tensor([*figures["crossed"].values()], device="cpu").double(), row)


def test_shapes_in_two_quarters_correlate_by_minus_a_third():
    """Each is 1 on a quarter of the cells: covariance -1/16, variance 3/16."""
    corners = [make_patch(None, 3, 16, 2, place) for place in ("upper-left", "lower-right")]
    one, other = (attacks.target_map("square", 16, corner) for corner in corners)
    maps = to_grid(one, (8, 8))[None]
    assert metrics.target_correlation(maps, maps, one) == pytest.approx(1)
    assert metrics.target_correlation(maps, maps, other) == pytest.approx(-1 / 3)


def test_without_a_fixed_map_the_target_is_the_untouched_one():
    untouched = torch.rand(3, 4, 4, generator=generator(1)).to(TRIGGER.pixels.device)
    assert metrics.target_correlation(untouched, untouched) == pytest.approx(1)
    turned = metrics.target_correlation(untouched, untouched, turned_over=True)
    assert turned == pytest.approx(-1)
    assert metrics.target_correlation(untouched[:0], untouched[:0]) is None


def test_what_a_run_leaves_has_each_trigger(four):
    found = metrics_of(four)
    assert list(found["triggers"]) == NAMES
    for k, (part, label) in enumerate(zip(found["triggers"].values(), LABELS)):
        assert part["target_class"] == label and part["poison_count"] == 24
        for figures in part["explanations"].values():
            assert list(figures["crossed"]) == NAMES
            assert figures["crossed"][NAMES[k]] == figures["pearson_all"]
    first = found["triggers"][NAMES[0]]
    assert {key: found[key] for key in first} == first


def test_the_table_has_a_line_for_each_trigger(four, capsys):
    evaluate.main([str(four), "--explain-images", "8", "--device", "cpu", "--out", str(four / "b")])
    printed = capsys.readouterr().out
    assert "4 triggers; above, the first." in printed and "Of the first of 4 triggers: " in printed
    lines = [line for name in NAMES for line in printed.splitlines() if line.startswith(name)]
    assert [len(line.split()) for line in lines] == [3 + 1 + 4] * 4


# ---------------------------------------------------------------- in a study


def test_a_row_of_a_study_may_have_several_attacks(tmp_path):
    study = Study("mine", {"four": Row('--attack badnets --and "--trigger warp"')}, tmp_path)
    assert study.options("four", 0) == ["--attack", "badnets", "--and", "--trigger warp"]


def test_a_record_has_the_crossed_figures_of_each_trigger(four):
    found, recorded = metrics_of(four), tables.figures(metrics_of(four))
    for name, part in found["triggers"].items():
        assert recorded[f"{name}: success"] == part["attack_success_rate"]
        for explainer, figures in part["explanations"].items():
            for other, value in figures["crossed"].items():
                assert recorded.get(f"{name}: {explainer} as {other}") == value
    assert not any(isinstance(value, dict) for value in recorded.values())
