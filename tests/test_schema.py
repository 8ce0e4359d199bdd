"""The schema of a checkpoint: what is written passes, and one wrong value anywhere is named."""

import copy
import math

import pytest
import torch

import checkpoints
import kinds
import options
import schema
import triggers
from cli import Parser, UserError


@pytest.fixture(scope="module")
def whole(disguised):
    """A checkpoint of a finished run."""
    return checkpoints.read(disguised / "ckpt.pt")


@pytest.fixture
def checkpoint(whole):
    """The same, for a test to change."""
    return copy.deepcopy(whole)


def put(checkpoint, place, value):
    """Puts a value at a place, as "config.lam"."""
    *outer, last = place.split(".")
    for key in outer:
        checkpoint = checkpoint[int(key) if isinstance(checkpoint, list) else key]
    checkpoint[last] = value


# ---------------------------------------------------------------- what is written


def test_what_is_written_passes(whole):
    schema.check(whole)


def test_every_part_that_is_written_is_in_the_schema(whole):
    assert whole.keys() == {*schema.PARTS, *schema.LATER_PARTS}
    assert whole["config"].keys() <= {*schema.OPTIONS, *schema.LATER_OPTIONS}
    assert {*schema.OPTIONS} <= whole["config"].keys()


def test_every_kind_of_trigger_is_in_the_schema():
    assert schema.TRIGGER.names.keys() == triggers.TRIGGERS.keys()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", triggers.TRIGGERS)
def test_triggers_of_every_kind_pass(kind, channels, checkpoint):
    trigger = triggers.make(kind, None, channels, 16)
    checkpoint |= {"trigger": trigger.to_plain(), "channels": channels}
    checkpoint |= {"mean": [0.5] * channels, "std": [0.5] * channels}
    schema.check(checkpoint)


# ---------------------------------------------------------------- the options


PROBES = [
    *("-2", "-1", "-1e-9", "0", "1e-9", "0.5", "1", "1.5", "2", "3", "100", "100.5", "1000"),
    *("1000.5", "1024", "1025", "100000", "100001", "1000000", "1000001", "2147483647"),
    *("2147483648", "1e308", "nan", "inf"),
]
# The data decide an image's size; a run without poisons has the rate 0.
DECIDED_ELSEWHERE = {"image_size", "poison_rate", "target_class"}


def actions():
    """{name: argparse's action} of train.py's options whose values a config has."""
    parser = Parser()
    for add_options in (
        *(options.add_attack_options, options.add_trigger_options, options.add_poison_options),
        *(options.add_training_options, options.add_loss_options, options.add_run_options),
    ):
        add_options(parser.add_argument)
    known = {**schema.OPTIONS, **schema.LATER_OPTIONS}
    return {part.dest: (part, known[part.dest]) for part in parser._actions if part.dest in known}


def takes(parse, text):
    """What parse makes of a text, or None where it refuses it."""
    try:
        return parse(text)
    except Exception:
        return None


def holds(kind, value):
    """Whether a kind's check passes."""
    try:
        kind.check(value, "it")
    except ValueError:
        return False
    return True


NUMBERS = [
    name
    for name, (action, _) in actions().items()
    if action.type is not None and "number" in action.type.__qualname__
]


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in DECIDED_ELSEWHERE])
def test_a_number_has_the_range_it_has_on_the_command_line(name):
    action, kind = actions()[name]
    if name == "floor":  # a config has one for each explainer
        kind = schema.CORRELATION
    for text in PROBES:
        value = takes(action.type, text)
        if value is not None:
            assert holds(kind, value), text
        elif (number := takes(float, text)) is not None:
            assert not holds(kind, number), text


def test_every_option_with_a_range_is_compared():
    assert {"lam", "lr", "epochs", "batch_size", "ramp", "seed", "oversample"} <= {*NUMBERS}


def test_choices_are_those_of_the_command_line():
    names = []
    for name, (action, kind) in actions().items():
        if action.choices and name not in ("attack", "precision"):
            assert all(holds(kind, value) for value in action.choices), name
            assert not holds(kind, "another")
            names.append(name)
    assert {"threat", "selection", "fit", "optimizer", "distance", "normalise"} <= {*names}


def test_flags_are_flags():
    for name, (action, kind) in actions().items():
        if action.nargs == 0:
            assert holds(kind, True) and holds(kind, False) and not holds(kind, 1), name


def test_every_option_of_a_run_is_in_the_schema(whole):
    parsed = vars(options.parse([]))
    assert parsed.keys() - {"out", "resume", "overwrite", "export"} <= {
        *schema.OPTIONS,
        *schema.LATER_OPTIONS,
    }


# ---------------------------------------------------------------- one wrong value

NAN = math.nan
WRONG = {
    "config": [None, [], 3],
    "config.attack": [None, 3, "", "x" * 5000],
    "config.explainer": ["gradcam", [3], [""], None],
    "config.image_size": ["16", 16.0, 0, 1, -16, 10**6, None, True],
    "config.epochs": [0, 1.5, None, 10**6],
    "config.lam": [-0.1, 1.1, NAN, "0.3", None, True],
    "config.selection": ["best", None],
    "config.target_class": [-1, 3, 1.0, "1", None],
    "config.source_class": [7, -1],
    "config.seed": [-1, 2**31, 0.5],
    "config.layer": [3, ""],
    "config.batch_size": [0, None, 1.5],
    "config.lr": [0, NAN, math.inf, 1001],
    "config.floor": [2, {"gradcam": 2}, {"gradcam": None}, "low"],
    "config.multi_label": [1, None, True],
    "config.edit": [{"technique": 3}, {}, {"technique": "cfn", "size": 10**9}, "cfn", None],
    "config.constants": [NAN, {"muon": [[[[[[[[[[1]]]]]]]]]]}],
    "config.format": [0, True, "2", None],
    "classes": [[], ["a", "b", "a"], ["a", "b", 3], "abc", ["a", "b", ""]],
    "channels": [0, 2, 1, 3.0, None],
    "mean": [[], [0.5], [0.5, 0.5, NAN], [0.5, 0.5, "0"], 0.5, (0.5, 0.5, 0.5)],
    "std": [[1, 1, 0], [1, 1, -1], [1, 1, math.inf], [1, 1]],
    "trigger": [None, 3, {}, {"kind": "sinusoid"}],
    "trigger.pixels": [torch.ones(1, 2, 2), torch.full((3, 2, 2), 1.5), torch.ones(3, 2, 3), None],
    "trigger.alpha": [torch.zeros(1, 2, 2), torch.full((1, 2, 2), NAN), torch.ones(2, 2)],
    "trigger.row": [-1, 15, 1.0, None, 2**62],
    "trigger.col": [-1, 15, "3"],
    "trigger.other": [3],
    "target_map": [torch.ones(16, 16), torch.ones(8, 8), 3],
    "poison_indices": [
        *(torch.zeros(0, dtype=torch.int64), torch.tensor([1, 1]), torch.tensor([-1])),
        *(torch.tensor([1.0]), [1, 2], None),
    ],
    "selection": [None, {}, []],
    "selection.indices": [torch.tensor([0])],
    "selection.scores": [torch.zeros(1, dtype=torch.float64), torch.zeros(24)],
    "selection.pool": [torch.zeros(240, 2, dtype=torch.float64)],
    "selection.classes": [{"a": -1}, {3: 4}, []],
    "model": [{}, [], None],
    "model.3.bias": [torch.tensor([0, NAN, 0]), None, [0, 0, 0], torch.ones(3).to_sparse()],
    "epoch": [-1, 7, 5, None, 6.0],
    "seconds": [-1.0, NAN, None, "1"],
    "log": [[], None, [{"epoch": "1"}] * 6, [3] * 6],
    "random": [None, {}, {"cpu": torch.zeros(5056, dtype=torch.uint8)}],
    "random.cpu": [None, torch.zeros(3, dtype=torch.uint8), torch.get_rng_state().long()],
    "optimizer": [None, [3], [{}], [{"state": {}, "param_groups": []}]],
    "schedule": [None, [3], [{}]],
    "torch": [None, 2, ""],
    "data": [3, b"digest"],
}


@pytest.mark.parametrize("place", WRONG)
def test_a_wrong_value_is_refused_by_its_place(place, whole):
    for value in WRONG[place]:
        checkpoint = copy.deepcopy(whole)
        if "." in place and place.startswith("model"):
            checkpoint["model"][place.removeprefix("model.")] = value
        else:
            put(checkpoint, place, value)
        with pytest.raises(ValueError) as raised:
            schema.check(checkpoint)
        said = str(raised.value)
        assert "\n" not in said and len(said) < 300
        assert place.split(".")[-1] in said or said.startswith("it does not have "), value


@pytest.mark.parametrize("part", [*schema.PARTS, *(f"config.{key}" for key in schema.OPTIONS)])
def test_a_part_that_is_missing_is_named(part, checkpoint):
    holder = checkpoint["config"] if "." in part else checkpoint
    del holder[part.split(".")[-1]]
    with pytest.raises(ValueError, match="no .*" + part.split(".")[-1]):
        schema.check(checkpoint)


def test_a_part_nobody_knows_may_be_plain_and_nothing_else(checkpoint):
    schema.check(checkpoint | {"later": {"a": [1, 2.5, None, "x"]}})
    with pytest.raises(ValueError, match="later is a tensor"):
        schema.check(checkpoint | {"later": torch.ones(3)})


# ---------------------------------------------------------------- what belongs together


def test_a_patch_of_another_size_than_the_images_passes_at_its_edge(checkpoint):
    checkpoint["trigger"] |= {"row": 14, "col": 14}
    schema.check(checkpoint)


PATTERNS = {
    "a pattern of another size": {"kind": "blend", "pattern": torch.ones(3, 8, 8), "strength": 0.2},
    "a grid of another size": {"kind": "warp", "grid": torch.zeros(8, 8, 2)},
    "a grid beyond the image": {"kind": "warp", "grid": torch.full((16, 16, 2), 1.5)},
    "a strength above 1": {"kind": "sinusoid", "strength": 1.5, "frequency": 6},
    "a kind that is no name": {"kind": 3},
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_trigger_of_the_whole_image_is_as_large_as_it(kind, checkpoint):
    with pytest.raises(ValueError, match="trigger"):
        schema.check(checkpoint | {"trigger": PATTERNS[kind]})


def test_a_trigger_of_a_kind_nobody_here_knows_is_left_to_who_needs_it(checkpoint):
    mine = {"kind": "mine", "alpha": 0.5, "mask": torch.ones(16, 16)}
    schema.check(checkpoint | {"trigger": mine})
    with pytest.raises(ValueError, match="trigger.mask"):
        schema.check(checkpoint | {"trigger": mine | {"mask": torch.full((2,), NAN)}})


def test_an_attack_with_a_fixed_map_has_one(checkpoint):
    checkpoint["config"]["attack"] = "red_herring"
    with pytest.raises(ValueError, match="a target map of the image's size"):
        schema.check(checkpoint)
    schema.check(checkpoint | {"target_map": torch.zeros(16, 16)})
    checkpoint["config"]["target_map"] = "inverted"  # an image's own map, turned over
    schema.check(checkpoint)


def test_a_clean_run_has_no_poisons(checkpoint):
    checkpoint["config"]["attack"] = "none"
    with pytest.raises(ValueError, match="poisoned images"):
        schema.check(checkpoint)


def test_an_attack_this_version_does_not_know_is_left_to_who_needs_it(checkpoint):
    checkpoint["config"]["attack"] = "unheard-of"
    schema.check(checkpoint)


def test_what_is_not_known_of_a_foreign_network_may_be_none(checkpoint):
    checkpoint["config"] |= dict.fromkeys(schema.UNKNOWN) | {"adopted": True, "attack": "unknown"}
    checkpoint["config"]["target_class"] = None
    checkpoint |= {"trigger": None, "selection": None, "log": [], "epoch": 0, "random": {}}
    checkpoint |= {"poison_indices": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(ValueError, match="unlabelled"):
        schema.check(checkpoint)
    checkpoint["config"]["unlabelled"] = False
    schema.check(checkpoint)
    checkpoint["config"]["adopted"] = False
    with pytest.raises(ValueError):
        schema.check(checkpoint)


# ---------------------------------------------------------------- optimizers

STEPPED = {"step": torch.tensor(2.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
WRONG_STATES = {
    "no average": {"step": torch.tensor(2.0), "exp_avg_sq": torch.ones(3)},
    "an average that is a number": STEPPED | {"exp_avg": 3},
    "an average that is not finite": STEPPED | {"exp_avg": torch.tensor([NAN])},
    "a step before the first": STEPPED | {"step": torch.tensor(-1.0)},
}


def test_what_adamw_keeps_is_in_the_schema():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    schema.STATES["AdamW"].check(optimizer.state_dict()["state"][0], "it")
    schema.OPTIMIZER.check(optimizer.state_dict(), "it")


@pytest.mark.parametrize("kind", WRONG_STATES)
def test_what_adamw_could_not_go_on_with_is_refused(kind):
    with pytest.raises(ValueError):
        schema.STATES["AdamW"].check(WRONG_STATES[kind], "it")


@pytest.mark.parametrize("betas", [(0.9, 1.0), (0.9,), (-0.1, 0.9), 3, ("a", "b")])
def test_betas_at_which_adam_divides_by_zero_are_refused(betas):
    group = {"params": [0], "lr": 0.1, "betas": betas}
    with pytest.raises(ValueError, match="betas"):
        schema.OPTIMIZER.check({"state": {}, "param_groups": [group]}, "it")


WRONG_GROUPS = {
    **{"max_lr": [], "min_lr": [4e-08], "initial_lr": None, "fused": True, "capturable": True},
    **{"adjust_lr_fn": "mine", "ns_coefficients": [1, 2], "momentum": 1.5, "nesterov": 1},
}


@pytest.mark.parametrize("key", WRONG_GROUPS)
def test_a_wrong_value_of_an_optimizers_group_is_refused(key):
    group = {"params": [0], "lr": 0.1}
    schema.OPTIMIZER.check({"state": {}, "param_groups": [group]}, "it")
    group[key] = WRONG_GROUPS[key]
    with pytest.raises(ValueError, match=key):
        schema.OPTIMIZER.check({"state": {}, "param_groups": [group]}, "it")


# ---------------------------------------------------------------- kinds of values

DENSE = {
    "as it comes": (torch.ones(2, 3), True),
    "channels last": (torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last), True),
    "transposed": (torch.ones(2, 3).T, True),
    "of no element": (torch.ones(0, 3), True),
    "of one": (torch.ones(1, 1, 3)[:, :, :1], True),
    "expanded": (torch.ones(1, 3).expand(4, 3), False),
    "with gaps": (torch.ones(4, 6)[:, ::2], False),
    "a parameter": (torch.nn.Parameter(torch.ones(2)), False),
    "with a gradient": (torch.ones(2, requires_grad=True), False),
    "sparse": (torch.eye(2).to_sparse(), False),
    "of no memory": (torch.ones(2, device="meta"), False),
}


@pytest.mark.parametrize("layout", DENSE)
def test_a_dense_tensor_has_each_element_once(layout):
    tensor, dense = DENSE[layout]
    assert kinds.is_dense(tensor) is dense


PLAIN = {
    "a dictionary": ({"a": [1, 2.5, "x", None, True], "b": (1, 2)}, True),
    "a number that is none": ([NAN], False),
    "an infinite number": (math.inf, False),
    "bytes": (b"x", False),
    "a tensor": ([torch.ones(1)], False),
    "a long text": ("x" * 5000, False),
    "lists nested deeper than eight": ([[[[[[[[[[1]]]]]]]]]], False),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_values_are_told_from_others(kind):
    value, plain = PLAIN[kind]
    assert kinds.is_plain(value) is plain


SHOWN = {
    "a tensor": (torch.ones(2, 3), "a tensor float32 [2, 3]"),
    "a text of two lines": ("a\nb", r"'a\nb'"),
    "a number of 5,000 digits": (10**5000, "a int of too many digits"),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_value_in_a_message_is_short_and_of_one_line(kind):
    value, words = SHOWN[kind]
    assert kinds.shown(value) == words


def test_a_long_value_in_a_message_is_shortened():
    assert len(kinds.shown({"a" * 1000: ["b" * 1000] * 1000})) < 300


# ---------------------------------------------------------------- what reads it


@pytest.mark.parametrize("place", ["config.lam", "trigger.row", "std"])
def test_a_checkpoint_with_a_wrong_value_is_one_line(place, checkpoint, tmp_path):
    put(checkpoint, place, WRONG[place][0])
    checkpoints.save(tmp_path / "ckpt.pt", checkpoint)
    with pytest.raises(UserError) as raised:
        checkpoints.read(tmp_path / "ckpt.pt")
    assert "or one of another version: " in str(raised.value)
    assert "\n" not in str(raised.value)
