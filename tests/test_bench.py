"""bench.py's command line and its parts, on as little as it takes."""

import contextlib
import cProfile
import io
import json
import time
from types import SimpleNamespace

import pytest
import torch
from placing import DEVICE
from torch import nn

import bench
import bench_parts
import bench_peers
from bench_peers import Sizes
from bench_timing import Setting, time_in_turns
from cli import UserError
from defences import neural_cleanse
from provenance import commit, hardware

KERNEL = "kernelshap, 4 patches, 14 coalitions"
SETTING = Setting("cnn", 8, 1, torch.device(DEVICE), explainers=("gradcam",))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The file that --out writes."""
    return tmp_path_factory.mktemp("bench") / "speed.json"


@pytest.fixture(scope="module")
def result(path):
    """What --json prints, of one turn on 8 images and 2x2 patches."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(bench, "SIZES", Sizes(2, 14))
        options = ["--batch-size", "8", "--turns", "1", "--device", DEVICE]
        options += ["--explainer", "deepshap,gradcam,kernelshap"]
        bench.main([*options, "--json", "--out", str(path)])
    return json.loads(printed.getvalue())


# ---------------------------------------------------------------- explainers and steps


def test_every_explainer_and_training_step_is_timed(result):
    expected = {
        "forward",
        "gradcam",
        "gradient",
        "deepshap, 1 reference",
        KERNEL,
        "step: plain cross-entropy",
        "step: cross-entropy, partners too",
        "step: full disguise, gradcam",
        "step: full disguise, gradcam+kernelshap+deepshap",
    }
    assert expected <= result["rates"].keys()
    assert result["device"] == DEVICE


def test_the_file_has_the_figures_and_what_they_were_measured_on(result, path):
    record = json.loads(path.read_text())
    assert {key: record[key] for key in result} == result
    assert record["hardware"] == hardware(DEVICE)
    assert record["commit"] == commit()


def test_the_command_of_the_file_is_a_command_line_of_bench(result, path):
    words = json.loads(path.read_text())["command"].split()
    assert words[:2] == ["python", "bench.py"]
    args = bench.parse(words[2:])
    assert (args.model, args.batch_size, args.turns, args.device) == ("cnn", 8, 1, DEVICE)
    assert args.explainer == "deepshap,gradcam,kernelshap"


def test_a_ratio_is_to_the_speed_it_is_compared_with(result):
    rates = result["rates"]
    for row in rates.values():
        speed = rates[row["of"]]["images_per_second"]
        assert row["ratio"] == pytest.approx(row["images_per_second"] / speed)
    assert rates["forward"]["ratio"] == 1
    assert rates["step: plain cross-entropy"]["ratio"] == 1


def test_a_variant_is_compared_with_what_it_varies(result):
    assert result["rates"][f"{KERNEL}: ours in bf16"]["of"] == KERNEL


def test_a_disguise_is_compared_with_cross_entropy_on_the_same_images(result):
    rates = result["rates"]
    assert rates["step: full disguise, gradcam"]["of"] == "step: cross-entropy, partners too"
    assert rates["step: cross-entropy, partners too"]["of"] == "step: plain cross-entropy"


def test_the_steps_that_are_compared_have_as_many_images():
    """Of 20 images two are triggered, and are there without the trigger, too."""
    model, (images, labels) = SETTING.network(), Setting("cnn", 20, 1, SETTING.device).noise()
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for function in bench.training(model, images, labels, SETTING).values():
        function()
    assert seen == [20, 22, 22]


def test_our_values_are_those_of_shap(result):
    assert all(value < 1e-6 for value in result["agreement"].values())


def test_kernelshap_moves_a_little_in_bfloat16(result):
    assert 0 < result["kernelshap_moves"]["bf16"] < 0.2


def test_kernelshap_does_not_move_where_all_coalitions_are_sampled(result):
    """14 of 2x2 patches are all there are."""
    assert result["kernelshap_moves"]["other coalitions"] < 1e-5


# ---------------------------------------------------------------- timing


def test_the_slowest_takes_its_turn_with_the_others():
    taken = []
    functions = {"a": lambda: taken.append("a"), "b": lambda: taken.append("b")}
    seconds = time_in_turns(functions, 2, torch.device(DEVICE))
    assert taken == ["a", "b"] * 3
    assert min(seconds.values()) >= 0


def test_seconds_that_a_process_waits_are_not_computed():
    wait = {"wait": lambda: time.sleep(0.2)}
    assert time_in_turns(wait, 1, torch.device("cpu"), "wall")["wait"] >= 0.2
    assert time_in_turns(wait, 1, torch.device("cpu"), "cpu")["wait"] < 0.1


def test_a_network_and_its_images_are_the_same_at_every_call():
    a, b = SETTING.network(), SETTING.network()
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert torch.equal(SETTING.noise()[0], SETTING.noise()[0])


# ---------------------------------------------------------------- peers


def failing(*_, **__):
    """A peer that does not know the network; its message has two lines."""
    raise RuntimeError("is a view and is being modified inplace\nsecond line")


@pytest.mark.parametrize("maker", [failing, lambda: failing], ids=["made", "called"])
def test_a_peer_that_fails_is_left_out_with_one_line(maker, capsys):
    working = bench_peers.working({"a: peer": maker, "b: peer": lambda: lambda: None})
    assert list(working) == ["b: peer"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("a: peer is left out: RuntimeError: is a view")


def test_the_rest_is_measured_without_the_peers_that_fail(monkeypatch, capsys):
    shap = SimpleNamespace(DeepExplainer=failing, KernelExplainer=failing)
    monkeypatch.setattr(bench_peers, "package", {"shap": shap}.get)
    monkeypatch.setattr(bench, "SIZES", Sizes(2, 14))
    found = bench.explainers(SETTING)
    assert {"forward", "gradcam", KERNEL} <= found["rates"].keys()
    assert not [name for name in found["rates"] if name.endswith(": shap")]
    assert found["agreement"] == {}
    assert capsys.readouterr().err.count("is left out") == 4


def test_an_interruption_is_no_failure_of_a_peer():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_peers.attempt("peer", interrupted)


@pytest.mark.parametrize("name", ["shap", "captum"])
def test_a_peer_of_kernelshap_gives_the_values_of_a_sum(name):
    """Of a network that is a sum over pixels, a patch's value is what its pixels add."""
    pytest.importorskip(name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).to(DEVICE).eval()
    images, _ = SETTING.noise()
    images, classes = images[:2], torch.tensor([3, 4], device=DEVICE)
    peer = bench_peers.kernel_peers(model, images, classes, Sizes(2, 14, 2))[name]
    weight = model[1].weight[classes].view_as(images)
    expected = (weight * images).sum(1).unfold(1, 16, 16).unfold(2, 16, 16).sum((3, 4))
    torch.testing.assert_close(peer().to(expected), expected, atol=1e-3, rtol=1e-2)


def test_a_package_that_is_not_installed_is_none():
    assert bench_peers.package("no_such_package") is None
    assert bench_peers.package("no_such_package.part") is None
    assert bench_peers.package("json") is json


# ---------------------------------------------------------------- seconds to a given error


def test_the_fewest_coalitions_are_those_from_which_on_no_error_is_above():
    errors = {8: 0.5, 16: 0.2, 32: 0.3, 64: 0.1}
    assert bench_parts.fewest(errors, 0.05) is None
    assert bench_parts.fewest(errors, 0.1) == 64
    assert bench_parts.fewest(errors, 0.25) == 64
    assert bench_parts.fewest(errors, 0.3) == 16
    assert bench_parts.fewest(errors, 0.6) == 8


def test_an_error_is_relative_to_the_exact_values():
    exact = torch.rand(4, 2, 2, dtype=torch.float64)
    assert bench_parts.error(lambda: 1.1 * exact, exact, 2) == pytest.approx(0.1)


def test_forward_passes_are_as_many_as_coalitions():
    seen = []
    model = lambda images: seen.append(len(images))
    bench_parts.forward_passes(model, torch.zeros(3, 3, 4, 4), 30)
    assert sum(seen) == 90


def test_ours_at_a_peers_error_is_timed(monkeypatch):
    def peers(model, images, classes, sizes):
        worthless = torch.zeros(len(images), 2, 2)  # an error of 1
        return {"bad": lambda: worthless, "none": lambda: worthless + torch.nan}

    monkeypatch.setattr(bench_peers, "kernel_peers", peers)
    found = bench_parts.kernelshap(SETTING, Sizes(2, 14, 2), (8, 14), draws=2, trained_on=100)
    assert found["peers"]["bad"]["error"] == pytest.approx(1)
    for name in ("kernelshap", "gpshap"):
        assert found["errors"][name][14] < 1e-5  # all there are
        (row,) = (r for r in found["same_error"] if (r["explainer"], r["peer"]) == (name, "bad"))
        assert row["coalitions"] == 8 and row["seconds"] > 0
    assert found["forward_share"] > 0


# ---------------------------------------------------------------- Neural Cleanse, memory, command


def test_seconds_of_a_round_are_those_of_its_images():
    found = bench_parts.cleanse(SETTING, rounds=1, steps=1, images=8)
    assert list(found) == ["all classes at once", "one class after another", "as published"]
    searched = 8 * neural_cleanse.RESTARTS
    assert [row["images_a_round"] for row in found.values()] == [searched, searched, 992]
    for row in found.values():
        seconds = 10 * row["images_a_round"] / row["images_per_second"]
        assert row["seconds_a_round"] == pytest.approx(seconds)


def test_a_published_search_finds_a_patch():
    """Of a network that looks for brightness."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)).to(DEVICE)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 192))
        model[1].bias.copy_(torch.tensor([40.0, -40.0]))
    images = torch.rand(320, 3, 8, 8, device=DEVICE) * 0.1
    success = bench_parts.published_steps(model, images, 1)
    assert len(success) == 10
    assert success[-1] == 1


@pytest.mark.skipif(DEVICE != "cpu", reason="of tensors there is nothing to compare with")
def test_memory_does_not_change_with_the_images_explained():
    """All at once would need 390 MB for the first layer's output alone, or hide what is needed."""
    found = bench_parts.memory(SETTING, (64, 3000), ("gradcam",))["gradcam"]
    assert found[3000]["maps"] == 3000 * 8 * 8 * 4
    assert found[64]["working"] > 10e6
    assert abs(found[3000]["working"] - found[64]["working"]) < 25e6


def test_the_parts_of_a_command_are_timed(tiny):
    words = f"--dataset {tiny} --model cnn --epochs 1 --batch-size 24 --target-class 1"
    found = bench_parts.command(SETTING, f"{words} --attack fooling".split())["seconds"]
    assert list(found) == [
        "starting up",
        "drawing the data",
        "the rest of the setting",
        "training, with validation",
        "measuring",
        "pictures",
    ]
    assert min(found.values()) >= 0
    assert found["pictures"] > 0


def test_two_processes_are_timed_beside_one(tiny):
    words = f"--dataset {tiny} --model cnn --epochs 1 --batch-size 24 --target-class 1"
    found = bench_parts.processes(SETTING, (*words.split(), "--attack", "badnets"))
    assert list(found["images_per_second"]) == ["1", "2"]
    assert min(found["images_per_second"].values()) > 0


def test_what_a_function_called_counts_as_its_own():
    def inner():
        time.sleep(0.1)

    profile = cProfile.Profile()
    profile.runcall(lambda: inner())
    assert bench_parts.cumulative(profile, inner) >= 0.1
    assert bench_parts.cumulative(profile, failing) == 0


# ---------------------------------------------------------------- the command line


def refused(argv, capsys):
    """What a command line that is refused says on standard error."""
    with pytest.raises(SystemExit) as stopped:
        bench.main(argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("text", ["my notes", '{"my": "figures"}', "[1]", "\xff"])
def test_a_file_that_is_not_ours_is_not_overwritten(text, tmp_path, capsys, monkeypatch):
    """It is found out before anything is measured."""
    monkeypatch.setattr(bench, "bench", None)
    path = tmp_path / "speed.json"
    path.write_text(text, encoding="latin-1")
    error = refused(["--out", str(path), "--device", DEVICE], capsys)
    assert "would be lost" in error
    assert path.read_text(encoding="latin-1") == text


def test_a_folder_is_not_overwritten_and_one_that_is_missing_is_said(tmp_path, capsys):
    assert "would be lost" in refused(["--out", str(tmp_path)], capsys)
    assert "there is no folder" in refused(["--out", str(tmp_path / "no" / "a.json")], capsys)


def test_a_record_of_ours_and_an_empty_file_are_replaced(path, result, tmp_path):
    bench.check_replaceable(path)
    (tmp_path / "empty.json").touch()
    bench.check_replaceable(tmp_path / "empty.json")


def test_parts_by_request_stand_in_the_record_by_name(monkeypatch, capsys):
    monkeypatch.setitem(bench.bench_parts.PARTS, "memory", lambda setting: {"gradcam": {}})
    bench.main(["memory", "--json", "--device", DEVICE])
    found = json.loads(capsys.readouterr().out)
    assert found["parts"] == {"memory": {"gradcam": {}}}
    assert "rates" not in found


@pytest.mark.parametrize(
    "argv", [["--model", "vgg16"], ["lime"], ["--explainer", "gradcam,lime"], ["--clock", "sun"]]
)
def test_what_is_not_known_is_refused(argv, capsys):
    assert argv[-1].split(",")[-1] in refused(argv, capsys)


def test_seconds_of_the_cpu_are_not_those_of_a_gpu(monkeypatch):
    monkeypatch.setattr(bench, "choose_device", torch.device)
    with pytest.raises(UserError, match="does not count what cuda computes"):
        bench.setting_of(bench.parse(["--clock", "cpu", "--device", "cuda"]))


def test_a_table_is_printed_with_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(bench_peers, "package", lambda name: None)
    rows = {"forward": {"images_per_second": 1234.5, "of": "forward", "ratio": 1.0}}
    bench.print_table(
        {
            "model": "cnn",
            "batch_size": 8,
            "turns": 1,
            "device": "cpu",
            "threads": 1,
            "torch": "2",
            "rates": rows,
            "agreement": {},
            "kernelshap_moves": {"bf16": 0.01, "other coalitions": 0.02},
        }
    )
    printed = capsys.readouterr().out
    assert "1,234    1.00  of forward" in printed
    assert "captum is not installed" in printed
    assert "1.0% away in bf16, 2.0% with other coalitions" in printed
