"""A stranger's weights: read as data, in every usual wrapping; nothing in a file is ever run."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import models
import strangers
from strangers import network, read_weights

NET = """
from torch import nn

def build(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, classes))

def fixed():
    return build(5)

number = 7

def no_network():
    return number
"""


@pytest.fixture
def net(tmp_path):
    """The path of a Python file with a network of four channels."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture
def state(net):
    """The weights of that network for five classes."""
    torch.manual_seed(1)
    return strangers.from_file(net, "build", 5).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- wrappings

WRAPPED = {
    "bare": lambda state: state,
    "plain dict": dict,
    "state_dict": lambda state: {"state_dict": state, "best_prec1": 0.91},
    "model": lambda state: {"model": state, "epoch": 3},
    "net": lambda state: {"net": state, "acc": 91.0},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "wrapped twice": lambda state: {"state_dict": {"model": state}},
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "both": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_wrapped_state_dict_is_read(wrapping, state, tmp_path):
    torch.save(WRAPPED[wrapping](state), tmp_path / "weights.pth")
    assert same(read_weights(tmp_path / "weights.pth"), state)


def test_the_old_tar_like_format_is_read(state, tmp_path):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "old.pth"), state)


def test_our_own_checkpoint_is_a_file_of_weights(clean):
    ours = torch.load(clean / "ckpt.pt", map_location="cpu", weights_only=True)["model"]
    assert same(read_weights(clean / "ckpt.pt"), dict(ours))


def as_safetensors(state):
    """The bytes of a safetensors file, as its specification has them."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for key, value in state.items():
        data = value.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[value.dtype]
        offsets = [len(body), len(body) + len(data)]
        header[key] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_safetensors_are_read(state, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(as_safetensors(state))
    assert same(read_weights(tmp_path / "weights.safetensors"), state)


@pytest.mark.parametrize("kept", [4, 20, -3])
def test_damaged_safetensors_are_refused(kept, state, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(as_safetensors(state)[:kept])
    with pytest.raises(ValueError, match="safetensors"):
        read_weights(tmp_path / "weights.safetensors")


# ---------------------------------------------------------------- what is code is not run


class Canary:
    """Unpickled by a careless loader, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickled_network_is_refused_with_its_conversion(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="is not run; where you trust it, convert it: python -c"):
        read_weights(tmp_path / "whole.pth")


@pytest.mark.parametrize("inside", ["alone", "state_dict"])
def test_code_in_a_file_is_not_run(inside, tmp_path, state):
    bird = Canary(str(tmp_path / "sings"))
    torch.save(bird if inside == "alone" else {"state_dict": state, "extra": bird}, tmp_path / "f")
    with pytest.raises(ValueError, match="is not run"):
        read_weights(tmp_path / "f")
    assert not (tmp_path / "sings").exists()


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(Canary(str(tmp_path / "sings"))))
    with pytest.raises(ValueError):
        read_weights(tmp_path / "f.pkl")
    assert not (tmp_path / "sings").exists()


def test_torchscript_is_refused_with_its_conversion(tmp_path):
    torch.jit.script(nn.Sequential(nn.Linear(3, 2))).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match="TorchScript, a program, and is not run"):
        read_weights(tmp_path / "script.pt")


OTHERS = {
    "text": lambda path, state: path.write_text("hello"),
    "empty": lambda path, state: path.write_bytes(b""),
    "a number": lambda path, state: torch.save(7, path),
    "a list": lambda path, state: torch.save([torch.ones(2)], path),
    "no tensors": lambda path, state: torch.save({"epoch": 3}, path),
    "tensors and more": lambda path, state: torch.save({**state, "epoch": 3}, path),
    "cut short": lambda path, state: cut_short(path, state),
    "numpy": lambda path, state: np.savez(path.open("wb"), a=np.ones(3)),
}


def cut_short(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("kind", OTHERS)
def test_what_holds_no_weights_is_refused(kind, tmp_path, state):
    OTHERS[kind](tmp_path / "f.pth", state)
    with pytest.raises(ValueError, match="f.pth"):
        read_weights(tmp_path / "f.pth")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_weights(tmp_path / "nothing.pth")


# ---------------------------------------------------------------- architectures


def test_a_network_of_the_users_file_gets_the_weights(net, state):
    model = network(f"{net}:build", state, 16)
    images = torch.rand(2, 3, 16, 16)
    expected = strangers.from_file(net, "build", 5)
    expected.load_state_dict(state)
    torch.testing.assert_close(model(images), expected.eval()(images))
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_function_without_arguments_is_called_without(net, state):
    assert same(dict(network(f"{net}:fixed", state, 16).state_dict()), state)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvisions_networks_are_built_by_name(name):
    state = torchvision.models.get_model(name, weights=None, num_classes=4).state_dict()
    model = network(f"torchvision:{name}", state, 64)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 4)


def test_our_networks_are_built_by_name():
    state = models.build("cnn", 1, 7, 16).state_dict()
    assert network("cnn", state, 16)(torch.rand(2, 1, 16, 16)).shape == (2, 7)


def test_files_without_batch_norms_counters_fit():
    state = models.build("cnn", 3, 7, 16).state_dict()
    fewer = {key: value for key, value in state.items() if "num_batches" not in key}
    assert network("cnn", fewer, 16)(torch.rand(2, 3, 16, 16)).shape == (2, 7)


REFUSED = {
    "torchvision:resnet1": "torchvision has no classifier 'resnet1'",
    "perceptron": "unknown model 'perceptron'",
    "nothing.py:build": "there is no file nothing.py",
    "{net}:other": "has no function other",
    "{net}:number": "has no function number",
    "{net}:no_network": "returns no nn.Module",
    "cnn": "the weights do not fit cnn: they lack",
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_does_not_fit_is_refused(architecture, net, state):
    with pytest.raises(ValueError, match=REFUSED[architecture]):
        network(architecture.format(net=net), state, 16)


def test_what_does_not_fit_is_named(net, state):
    state = {key.replace("0.weight", "0.kernel"): value for key, value in state.items()}
    with pytest.raises(ValueError, match="lack 1 key, as 0.weight; they have 1 key too many"):
        network(f"{net}:build", state, 16)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8])
def test_weights_of_another_kind_are_not_cast_in_silence(kind, net, state):
    """Of complex ones half would be lost, and quantised ones lack their scale."""
    state = state | {"0.weight": state["0.weight"].to(kind)}
    with pytest.raises(ValueError, match="hold no floating-point numbers in 1 key, as 0.weight"):
        network(f"{net}:build", state, 16)
