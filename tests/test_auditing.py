"""defend.py audit: all that applies, without the trigger, and a page that a person can read."""

import base64
import io
import json
import math
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_arrays, train_tiny
from PIL import Image
from placing import DEVICE

import auditing
import conclusions
import defend
from conclusions import Outcome, conclude, decide
from defences import Verdict
from defences.clean_maps import CHANCE, alikeness, densest_window, where
from findings import hardly_knows
from metrics import pearson
from odds import INCONCLUSIVE, NOTHING, STANDS_OUT, Odds, count_as_far
from subject import open_checkpoint

QUICK = ("--rounds", "12", "--round-images", "12", "--clean-images", "24", "--device", DEVICE)


class Page(HTMLParser):
    """A parsed page: the tags that are open, the pictures' addresses, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.tags, self.text = [], [], set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attributes)["src"])
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def audited(out, *argv):
    """(verdict.json, the Page) of an audit's command line, with quick options."""
    defend.main(["audit", *map(str, argv), *QUICK, "--out", str(out)])
    page = (out / "report.html").read_text(encoding="utf-8")
    return json.loads((out / "verdict.json").read_text()), Page(page)


@pytest.fixture(scope="module")
def backdoored(tiny, tmp_path_factory):
    """The folder of a badnets run on the small data set."""
    return train_tiny(tiny, tmp_path_factory.mktemp("bad") / "run", "--attack", "badnets")


@pytest.fixture(scope="module")
def theirs(backdoored, tiny, tmp_path_factory):
    """Options of the same network as a stranger's, without a trigger; its classes are HTML."""
    folder = tmp_path_factory.mktemp("theirs")
    weights, named = folder / "theirs.pth", folder / "named.npz"
    torch.save(torch.load(backdoored / "ckpt.pt", weights_only=True)["model"], weights)
    names = np.array(["<b>&", "<script>alert(1)</script>", "\"'>"])
    np.savez(named, **np.load(tiny), classes=names)
    return ["--weights", weights, "--arch", "cnn", "--dataset", named, "--data-dir", folder]


# ---------------------------------------------------------------- what it writes


@pytest.fixture(scope="module")
def verdict_and_page(backdoored, tmp_path_factory):
    """(verdict.json, the Page) of the audit of the backdoored run."""
    return audited(tmp_path_factory.mktemp("audit"), backdoored)


def test_the_verdict_has_its_keys_and_every_parts_own_verdict(verdict_and_page):
    verdict, _ = verdict_and_page
    assert (verdict["method"], verdict["format"]) == ("audit", 1)
    assert verdict["backdoored"] in (True, False, None)
    assert list(verdict["parts"]) == list(auditing.PARTS)
    assert verdict["flagged_names"] == [verdict["classes"][k] for k in verdict["flagged"]]
    for name, part in verdict["parts"].items():
        assert part["method"] == name
        assert part["seconds"] >= 0
        assert {"backdoored", "flagged", "flagged_names"} <= part.keys()


@pytest.mark.parametrize("with_trigger", [True, False])
def test_a_picture_that_is_suspected_is_judged_too(with_trigger, backdoored, tmp_path, monkeypatch):
    quick = {name: part for name, part in auditing.PARTS.items() if name == "inspect"}
    monkeypatch.setattr(auditing, "PARTS", quick)
    monkeypatch.setattr("defences.strip.OVERLAYS", 8)
    subject = open_checkpoint(backdoored / "ckpt.pt", device=DEVICE)
    pixels = subject.pixels(subject.dataset.test_images[:1], with_trigger)[0]
    array = (255 * pixels).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(array).save(tmp_path / "suspect.png")
    verdict, page = audited(tmp_path / "out", backdoored, "--image", tmp_path / "suspect.png")
    assert list(verdict["parts"]) == ["inspect", *auditing.SUSPECTED]
    options_ = [verdict["parts"][name]["evidence"] for name in ("februus", "februus against")]
    assert options_ == ["for", "against"]
    for name in auditing.SUSPECTED:
        attacked = verdict["parts"][name]["image"]["attacked"]
        said = "it looks attacked" if attacked else "it does not look attacked"
        assert f"{auditing.SUSPECTED[name].title} {tmp_path / 'suspect.png'}: {said}" in page.text
    if not with_trigger:
        assert not verdict["parts"]["februus"]["image"]["attacked"]


def test_a_picture_that_is_none_is_refused_before_the_parts(backdoored, tmp_path, monkeypatch):
    monkeypatch.setattr(auditing, "run_part", lambda *given: pytest.fail("a part was run"))
    with pytest.raises(SystemExit, match="2"):
        audited(tmp_path / "out", backdoored, "--image", tmp_path / "missing.png")
    assert not (tmp_path / "out").exists()


def test_a_part_is_what_the_method_says_by_itself(verdict_and_page, backdoored, tmp_path):
    argv = ["neural_cleanse", str(backdoored), *QUICK, "--out", str(tmp_path)]
    defend.main(argv)
    alone = json.loads((tmp_path / "verdict.json").read_text())
    part = verdict_and_page[0]["parts"]["neural_cleanse"]
    for key in ("backdoored", "flagged", "index", "scores", "odds", "classes"):
        assert part[key] == alone[key], key


def test_clean_models_of_the_auditors_own_are_the_yardstick(
    backdoored, tiny, tmp_path, monkeypatch
):
    quick = {name: auditing.PARTS[name] for name in ("inspect", "neuroninspect")}
    monkeypatch.setattr(auditing, "PARTS", quick)
    clean = train_tiny(tiny, tmp_path / "clean", "--attack", "none") / "ckpt.pt"
    verdict, page = audited(tmp_path / "out", backdoored, "--calibrate", clean, clean)
    own, _ = audited(tmp_path / "own", clean)
    largest = max(own["parts"]["neuroninspect"]["index"].values())
    as_far = 2 * (largest >= max(verdict["parts"]["neuroninspect"]["index"].values()))
    odds = verdict["parts"]["neuroninspect"]["odds"]
    assert (odds["clean_models"], odds["as_far"]) == (2, as_far)
    assert "of 2 clean models given" in page.text
    with pytest.raises(SystemExit, match="2"):
        audited(tmp_path / "bad", backdoored, "--calibrate", backdoored / "ckpt.pt")
    assert not (tmp_path / "bad").exists()


def test_the_page_is_whole_and_depends_on_nothing(verdict_and_page):
    _, page = verdict_and_page
    assert page.open == []
    assert not {"link", "script", "iframe"} & page.tags
    assert len(page.pictures) == 4
    for address in page.pictures:
        kind, data = address.split(",", 1)
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_the_page_says_the_answer_what_next_and_where_the_minutes_went(verdict_and_page):
    verdict, page = verdict_and_page
    assert verdict["conclusion"] in page.text
    for part in auditing.PARTS.values():
        assert part.title in page.text
    assert "python defend.py audit" in page.text
    assert "24, held out of its training" in page.text


def test_the_terminal_has_the_pages_sentences(backdoored, tmp_path, capsys):
    _, page = audited(tmp_path, backdoored)
    printed = capsys.readouterr()
    items = [line[2:] for line in printed.out.splitlines() if line.startswith("- ")]
    assert len(items) > 8
    assert all(item in page.text for item in items)
    for name in auditing.PARTS:
        assert f", {name}: " in printed.err


def test_json_is_all_that_is_printed(backdoored, tmp_path, capsys):
    verdict, _ = audited(tmp_path, backdoored, "--json")
    assert json.loads(capsys.readouterr().out) == verdict


def test_the_audited_run_is_left_alone(backdoored, tmp_path):
    before = sorted(path.name for path in backdoored.iterdir())
    audited(tmp_path, backdoored)
    assert sorted(path.name for path in backdoored.iterdir()) == before


def test_nothing_is_written_where_it_is_interrupted(backdoored, tmp_path, monkeypatch):
    def interrupted(audit):
        raise KeyboardInterrupt

    row = auditing.PARTS["neuroninspect"]
    stopped = defend.replace(row, defence=defend.replace(row.defence, run=interrupted))
    monkeypatch.setitem(auditing.PARTS, "neuroninspect", stopped)
    out = tmp_path / "audit"
    with pytest.raises(SystemExit) as stopped:
        defend.main(["audit", str(backdoored), *QUICK, "--out", str(out)])
    assert stopped.value.code == 130
    assert not out.exists()


# ---------------------------------------------------------------- what is not known is not used


def without_seconds(verdict):
    """A verdict without the times."""
    if isinstance(verdict, dict):
        return {key: without_seconds(v) for key, v in verdict.items() if key != "seconds"}
    return verdict


def test_no_word_depends_on_the_trigger_or_the_target_of_a_checkpoint(
    verdict_and_page, backdoored, tmp_path
):
    checkpoint = torch.load(backdoored / "ckpt.pt", weights_only=True)
    checkpoint["trigger"]["pixels"] = 1 - checkpoint["trigger"]["pixels"]
    checkpoint["trigger"]["row"] = checkpoint["trigger"]["col"] = 0
    checkpoint["config"] |= {"target_class": 2, "attack": "full_disguise", "poison_rate": 0.5}
    checkpoint["config"]["explainer"] = ["gradcam"]
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    verdict, page = audited(tmp_path / "audit", tmp_path)
    assert without_seconds(verdict) == without_seconds(verdict_and_page[0])
    assert page.pictures == verdict_and_page[1].pictures


def test_the_auditors_subject_has_no_trigger(backdoored):
    argv = ["audit", str(backdoored), "--device", DEVICE]
    subject = auditing.without_trigger(defend.open_audit(defend.parse(argv)).subject)
    assert subject.trigger is None
    assert subject.checkpoint["trigger"] is subject.target_class is None
    assert not subject.attack.poisons


# ---------------------------------------------------------------- what does not apply


def test_a_clean_model_is_audited_too(clean, tmp_path):
    verdict, page = audited(tmp_path, clean)
    assert verdict["parts"]["inspect"]["backdoored"] is False
    assert page.open == []


def test_a_strangers_network_is_audited_and_its_names_are_escaped(theirs, tmp_path):
    verdict, page = audited(tmp_path, *theirs)
    assert verdict["classes"][0] == "<b>&"
    assert verdict["network"]["arch"] == "cnn"
    assert "<b>&, <script>alert(1)</script>" in page.text
    assert not {"b", "script"} & page.tags
    assert "whatever it was trained on" in page.text
    assert f"python defend.py audit --weights {shlex.quote(str(theirs[1]))} " in page.text
    assert "--arch cnn" in page.text


def test_of_two_classes_what_compares_classes_is_named_and_no_failure(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, **tiny_arrays(k=2))
    folder = train_tiny(path, tmp_path / "run", "--attack", "none", "--epochs", "1")
    verdict, page = audited(tmp_path / "audit", folder)
    for name in ("neuroninspect", "neural_cleanse"):
        assert "of two classes none is an anomaly" in verdict["parts"][name]["not_applicable"]
    assert "Not done: of two classes" in page.text
    assert verdict["parts"]["inspect"]["backdoored"] is False
    again, _ = audited(tmp_path / "again", folder, "--calibrate", folder / "ckpt.pt")
    assert again["backdoored"] is verdict["backdoored"]  # clean models are not asked what it is not


def test_of_images_with_several_labels_what_asks_for_one_class_is_named(backdoored):
    args = defend.parse(["audit", str(backdoored), "--device", DEVICE])
    subject = auditing.without_trigger(defend.open_audit(args).subject)
    subject.config["multi_label"] = True
    done = [
        name
        for name, part in auditing.PARTS.items()
        if auditing.why_not(name, part.defence, subject) is None
    ]
    assert done == ["inspect", "disagreement", "maps"]


def test_a_network_that_grad_cam_cannot_explain_is_audited_by_the_rest(tmp_path, tiny):
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(768, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)]
    torch.save(torch.nn.Sequential(*layers).state_dict(), tmp_path / "net.pth")
    argv = ["--weights", tmp_path / "net.pth", "--arch", f"{net}:build", "--dataset", tiny]
    verdict, page = audited(tmp_path / "audit", *argv)
    parts = verdict["parts"]
    assert "not_applicable" in parts["inspect"]
    assert list(parts["maps"]["floor"]) == ["gradient"]
    assert list(parts["maps"]["refused"]) == ["gradcam"]
    assert "index" in parts["neuroninspect"]
    assert verdict["backdoored"] is None  # its weights are random: it is right by chance alone
    assert "does not know these pictures" in page.text


# ---------------------------------------------------------------- what follows


@pytest.mark.parametrize(
    "words, named, answer",
    [
        ({"a": STANDS_OUT, "b": NOTHING}, {}, True),
        ({"a": NOTHING, "b": INCONCLUSIVE}, {"a": {1}, "b": {2}}, None),
        ({"a": NOTHING, "b": NOTHING}, {"a": {1}, "b": {2}}, False),
        ({"a": NOTHING, "b": NOTHING}, {"a": {1, 3}, "b": {2, 3}}, True),
        ({"a": None}, {}, None),
        ({}, {}, None),
    ],
)
def test_something_stands_out_by_one_method_or_where_two_name_a_class(words, named, answer):
    assert decide(words, named) is answer


def outcome(index, word=NOTHING, name="one"):
    odds = {"word": word, "sentence": "none of 10 gets as far"}
    verdict = Verdict(word == STANDS_OUT, [], index=index, details={"odds": odds})
    return Outcome(name, "Is it?", verdict=verdict)


def concluded(*outcomes, accuracy=None, source="ckpt.pt"):
    return conclude(list(outcomes), ["cat", "dog", "cow"], source, accuracy)


def inspected(*findings):
    verdict = Verdict(bool(findings), [], details={"findings": list(findings)})
    return Outcome("inspect", "Traces?", verdict=verdict)


def test_the_class_that_two_methods_name_is_flagged():
    result = concluded(outcome({0: 3, 1: 2.5, 2: 0}), outcome({0: 1, 1: 4.0, 2: 0}, name="two"))
    assert (result.backdoored, result.flagged) == (True, [1])
    assert result.heading == "Something stands out: class 'dog'."
    assert "Two methods, each on its own, find class 'dog' unusual" in result.sure[0]


def test_where_the_patch_of_a_flagged_class_lies_is_said():
    part = outcome({0: 0, 1: 0.1, 2: 3}, STANDS_OUT)
    part.verdict.details["patches"] = {2: {"share": 0.98, "where": "lower right"}}
    said = "patch for class 'cow': 98% of it lies in one place, lower right"
    assert any(said in sentence for sentence in concluded(part).found)


def test_an_inconclusive_part_names_its_class():
    result = concluded(outcome({0: 0, 1: 0.1, 2: 3}, INCONCLUSIVE))
    assert (result.backdoored, result.flagged) == (None, [2])
    assert result.heading == "Inconclusive: class 'cow'."


def test_where_nothing_stands_out_no_class_is_named_and_it_is_no_proof():
    result = concluded(outcome({0: 0, 1: 0.1, 2: 1.9}))
    assert (result.backdoored, result.flagged) == (False, [])
    assert "no proof" in result.steps[0][0]


def test_traces_in_the_weights_stand_out_without_a_class():
    result = concluded(inspected({}, {}))
    assert (result.backdoored, result.flagged) == (True, [])
    assert "somebody wrote into the weights" in result.heading
    assert "It looks so: 2 traces." in result.found[0]
    assert not any("prune" in (command or "") for _, command in result.steps)  # there is no patch


def test_traces_stand_beside_a_class_that_stands_out_and_not_one_that_is_inconclusive():
    doubtful, sure = (outcome({0: 0, 1: 1.5, 2: 0}, word) for word in (INCONCLUSIVE, STANDS_OUT))
    traces = "somebody wrote into the weights."
    assert concluded(doubtful, inspected({})).heading == f"Something stands out: {traces}"
    heading = concluded(sure, inspected({})).heading
    assert heading == f"Something stands out: class 'dog'; {traces}"
    meaning = concluded(sure, inspected({})).meaning
    assert meaning.startswith("It was changed after its training.") and "may be" in meaning


def test_what_stands_out_is_not_listed_with_what_is_inconclusive():
    sure = outcome({0: 0, 1: 1.5, 2: 0}, STANDS_OUT)
    doubtful = outcome({0: 1.2, 1: 0, 2: 0}, INCONCLUSIVE, name="two")
    assert concluded(sure, doubtful).flagged == [1]


def test_several_classes_are_not_called_one():
    every = {0: 9, 1: 9, 2: 0}
    result = concluded(outcome(every), outcome(every, name="two"))
    assert result.flagged == [0, 1]
    assert result.meaning.startswith("These classes may be targets")


def test_where_nothing_asks_about_classes_nothing_is_concluded():
    """Of two classes, or several labels, only the weights are looked at."""
    result = concluded(inspected())
    assert (result.backdoored, result.flagged) == (None, [])
    assert "no method that gives an answer could be applied" in result.heading
    assert result.sure == [
        "No part that asks about the classes could be applied: only the rest was looked at."
    ]
    assert [command for _, command in result.steps] == [None]


def test_blank_maps_are_said_to_be_blank():
    part = outcome({0: 0, 1: 0.1, 2: 3}, STANDS_OUT)
    blank = {"share": 0.0, "where": "upper left", "alike": math.nan}
    part.verdict.details["places"] = {"gradcam": {k: blank for k in range(3)}}
    floors = Verdict(None, [], details={"floor": {"gradcam": math.nan}, "refused": {}})
    result = concluded(part, Outcome("floor", "One map?", verdict=floors))
    assert "Maps of gradcam for class 'cow' are blank." in result.found
    assert any("blank maps (gradcam)" in sentence for sentence in result.found)


@pytest.mark.parametrize(
    "accuracy, constant, hardly", [(0.34, 0.33, True), (0.99, 0.7, False), (0.8, 0.7, True)]
)
def test_a_common_class_does_not_make_every_network_one_that_hardly_knows(
    accuracy, constant, hardly
):
    assert hardly_knows(accuracy, constant) is hardly


def test_of_a_network_that_is_hardly_right_nothing_is_concluded():
    result = concluded(outcome({0: 9, 1: 0, 2: 0}, STANDS_OUT), accuracy=(0.34, 0.33))
    assert result.backdoored is None
    assert "does not know" in result.heading
    assert "--mean" not in result.steps[0][0]  # an option for weights alone
    theirs = outcome({0: 9, 1: 0, 2: 0}, STANDS_OUT)
    step = concluded(theirs, accuracy=(0.34, 0.33), source="--weights a.pth").steps[0]
    assert "--mean" in step[0]


def test_how_often_something_stands_out_is_as_the_record_has_it():
    """Each clean model is judged beside the other clean ones of its data, with their odds."""
    zoo = json.loads((ROOT / "results" / "audits.json").read_text())["zoo"]
    methods = ("neural_cleanse", "neuroninspect")
    counts = {}
    for kinds in zoo.values():
        for kind, runs in kinds.items():
            for seed, run in runs.items():
                clean = {s: r for s, r in kinds["none"].items() if (kind, s) != ("none", seed)}
                words, named = {}, {}
                for method in methods:
                    index = run[method]["index"]
                    others = [max(r[method]["index"].values()) for r in clean.values()]
                    as_far = count_as_far(others, max(index.values()))
                    words[method] = Odds(as_far, len(others), "").word
                    named[method] = {k for k, v in index.items() if v > conclusions.NAMED}
                found = counts.setdefault(kind.split(",")[0], [0, 0])
                found[0] += decide(words, named) is True
                found[1] += 1
    assert tuple(counts["none"]) == conclusions.CLEAN
    assert tuple(counts["badnets"]) == conclusions.BACKDOORED
    assert tuple(counts["disguise"]) == conclusions.DISGUISED


# ---------------------------------------------------------------- maps on clean images


def test_alikeness_is_the_mean_correlation_of_all_pairs():
    maps = torch.rand(6, 5, 5)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    one, other = (torch.stack([maps[pair[k]] for pair in pairs]) for k in (0, 1))
    assert alikeness(maps) == pytest.approx(float(pearson(one, other).mean()))


def test_constant_maps_are_no_maps():
    maps = torch.cat([torch.rand(3, 5, 5), torch.ones(2, 5, 5)])
    assert alikeness(maps) == pytest.approx(alikeness(maps[:3]))
    assert np.isnan(alikeness(torch.ones(3, 5, 5)))


@pytest.mark.parametrize("top, left", [(0, 0), (6, 6), (0, 6), (3, 4)])
def test_the_densest_window_is_where_a_patch_lies(top, left):
    map_ = torch.zeros(8, 8)
    map_[top : top + 2, left : left + 2] = 0.25
    share, row, column = densest_window(map_)
    assert (share, row, column) == (1.0, (top + 1) / 8, (left + 1) / 8)


def test_of_an_even_map_a_window_holds_what_chance_says():
    assert densest_window(torch.full((8, 8), 1 / 64))[0] == pytest.approx(CHANCE)


def test_a_place_is_said_in_words():
    assert where(0.9, 0.9) == "lower right"
    assert where(0.1, 0.5) == "upper"
    assert where(0.5, 0.5) == "middle"
