"""A stranger's network: weights from a file, in an architecture that the user names.

    state = read_weights("model.pth")                        # {key: tensor}; nothing in it is run
    model = network("torchvision:resnet18", state, 32)       # or "cnn", or "net.py:build"

A weights file is data. It is never unpickled beyond tensors and plain values, and no path that
stands in a file is ever opened: a Python file is run only where the user names it.
"""

import importlib.util
import inspect
import warnings
import zipfile
from pathlib import Path

import torch
import torchvision
from torch import nn

import archives
import models
import pickles
from hooks import logits_of_output
from terminal import counted

WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
PREFIXES = ("module.", "_orig_mod.")  # of wrappers; left off where all keys have them
SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CONVERSION = (
    "python -c \"import torch; torch.save(torch.load('{name}', weights_only=False).state_dict(),"
    " 'weights.pt')\""
)


# ---------------------------------------------------------------- weights from a file


def read_weights(path):
    """{key: tensor} of a file of weights, on the CPU, wrappers' names left off the keys.

    A state_dict, bare or under one of WRAPPINGS, as torch.save writes it, or safetensors. Raises
    ValueError for anything else, and says how a pickled network or TorchScript becomes one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        refuse_torchscript(path)
        state = unwrapped(unpickled(path), path)
    return without_prefixes(state)


def unpickled(path):
    """What torch.save wrote, if it is plain data. Raises ValueError."""
    try:
        archives.check(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles: such a file is refused here, in a line
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickles.HoldsCode:
        raise ValueError(
            f"{path} holds a pickled network, which is code, and is not run; where you trust "
            f"it, convert it: {CONVERSION.format(name=path.name)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or no file of weights: {error}") from None
    except Exception:  # a damaged pickle can raise anything at all
        raise ValueError(f"{path} is damaged, or no file of weights") from None


def refuse_torchscript(path):
    """Raises ValueError for an archive of TorchScript or of torch.export: both are programs."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in names):
        raise ValueError(
            f"{path} is TorchScript, a program, and is not run; where you trust it, convert it: "
            'python -c "import torch; torch.save(torch.jit.load'
            f"('{path.name}').state_dict(), 'weights.pt')\""
        )


def unwrapped(found, path):
    """The mapping of names to tensors in what was unpickled. Raises ValueError."""
    while isinstance(found, dict):
        tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
        if tensors and all(isinstance(key, str) for key in found) and len(tensors) == len(found):
            return tensors
        inner = [found[key] for key in WRAPPINGS if isinstance(found.get(key), dict)]
        if not inner:
            break
        found = inner[0]
    wanted = ", ".join(WRAPPINGS[:4])
    raise ValueError(f"{path} holds no state_dict, bare or under one of {wanted}")


def read_safetensors(path):
    """{key: tensor} of a safetensors file: length, JSON header, bytes. Raises ValueError."""
    state = {}
    try:
        header, start = archives.safetensors_header(path)
        with path.open("rb") as file:
            for key, part in header.items():
                first, last = part["data_offsets"]
                file.seek(start + first)
                flat = torch.frombuffer(
                    bytearray(file.read(last - first)), dtype=SAFETENSORS[part["dtype"]]
                )
                state[key] = flat.reshape(part["shape"])
        return state
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError):
        raise ValueError(f"{path} is damaged, or no safetensors file") from None


def without_prefixes(state):
    """The state_dict without the names of wrappers that all its keys begin with."""
    prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
    if prefix is None:
        return state
    return without_prefixes({key[len(prefix) :]: value for key, value in state.items()})


# ---------------------------------------------------------------- what the weights say


def count_of_classes(state):
    """K: the rows of the last matrix, or of the last convolution. Raises ValueError."""
    for key, value in reversed(state.items()):
        if key.endswith("weight") and value.ndim in (2, 4):
            return value.shape[0]
    raise ValueError("the weights hold no matrix: how many classes there are cannot be read")


def count_of_channels(state):
    """The channels of the images: the second size of the first convolution; 3 without any."""
    sizes = [value.shape[1] for value in state.values() if value.ndim == 4]
    return sizes[0] if sizes else 3


# ---------------------------------------------------------------- the network


def network(architecture, state, image_size, change=lambda model: model):
    """The nn.Module that the user named, with the weights; evaluation mode, frozen.

    architecture: a name of models.MODELS, "torchvision:NAME", or "FILE.py:FUNCTION", which is
    imported and called, with the number of classes if it takes an argument. change(model): the
    model the weights are of, where it was changed since. Raises ValueError.
    """
    source, _, name = architecture.rpartition(":")
    classes = count_of_classes(state)
    if not source:
        model = models.build(name, count_of_channels(state), classes, image_size)
    elif source == "torchvision":
        model = torchvision_model(name, classes)
    else:
        model = from_file(source, name, classes)
    model = change(model)
    load(model, state, architecture)
    # Whatever it returns, from now on it returns logits alone.
    model.register_forward_hook(lambda _, given, output: logits_of_output(output, len(given[0])))
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def is_file(architecture):
    """Whether an architecture is a function in a Python file."""
    source, _, _ = architecture.rpartition(":")
    return source not in ("", "torchvision")


def torchvision_model(name, classes):
    """A classifier of torchvision's by name, with so many classes, untrained. Raises ValueError."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}: one of {', '.join(known)}")
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)


def from_file(path, name, classes):
    """What the function `name` of the user's Python file returns. Raises ValueError."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--arch {path}:{name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise ValueError(f"--arch {path}:{name}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, name, None)
    if not callable(build):
        raise ValueError(f"--arch {path}:{name}: {path} has no function {name}")
    takes_classes = bool(inspect.signature(build).parameters)
    model = build(classes) if takes_classes else build()
    if not isinstance(model, nn.Module):
        raise ValueError(f"--arch {path}:{name}: {name} returns no nn.Module")
    return model


def load(model, state, architecture):
    """Puts the weights into the model, all of them. Raises ValueError where they do not fit."""
    own = model.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # old files lack them
    missing = [key for key in own if key not in state and key not in counters]
    unknown = [key for key in state if key not in own]
    differ = [key for key in own if key in state and own[key].shape != state[key].shape]
    floats = [key for key in own if key in state and own[key].is_floating_point()]
    no_floats = [key for key in floats if not state[key].is_floating_point()]  # complex, quantised
    troubles = {
        "lack {}": missing,
        "have {} too many": unknown,
        "have another shape in {}": differ,
        "hold no floating-point numbers in {}": no_floats,
    }
    said = [
        f"{what.format(counted(len(keys), 'key'))}, as {keys[0]}"
        for what, keys in troubles.items()
        if keys
    ]
    if said:
        raise ValueError(f"the weights do not fit {architecture}: they {'; they '.join(said)}")
    model.load_state_dict({key: own[key] for key in counters} | state)
