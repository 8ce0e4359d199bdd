"""Kinds of values, as a schema is made of: whether a value is one, and what is said if not.

    kind = Record({"lam": number(float, 0, 1)}, {})
    kind.check({"lam": 2}, "config")    # ValueError: "config.lam is 2, not a number from 0 to 1"

Every kind has check(value, place), which raises ValueError with the place of the value. No check
allocates more than the value takes, or looks deeper than a value of its kind is.
"""

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LONGEST_TEXT = 4096  # characters; a path has no more
LONGEST_SHOWN = 100  # characters of a value in a message
DEEPEST = 8  # levels of plain values in plain values


# ---------------------------------------------------------------- values that hold values


@dataclass(frozen=True)
class Record:
    """A dictionary with these keys, each of its kind; `optional` ones may be missing.

    closed: whether it has no other keys. Otherwise those hold plain values.
    """

    fields: dict
    optional: dict
    closed: bool = False

    def check(self, value, place):
        if not isinstance(value, dict):
            raise ValueError(f"{place or 'it'} is {shown(value)}, not a dictionary")
        missing = [key for key in self.fields if key not in value]
        if missing:
            raise ValueError(f"{place or 'it'} has no {missing[0]}")
        kinds = self.fields | self.optional
        for key, part in value.items():
            if type(key) is not str or (self.closed and key not in kinds):
                raise ValueError(f"{place or 'it'} has a part {shown(key)}, which nobody knows")
            kinds.get(key, PLAIN).check(part, f"{place}.{key}" if place else key)


@dataclass(frozen=True)
class Each:
    """A list of up to `most` values of a kind or, with `key`, a dictionary of them."""

    kind: Any
    key: Any = None
    most: int = 100_000
    least: int = 0

    def check(self, value, place):
        form, word = (list, "list") if self.key is None else (dict, "dictionary")
        if not isinstance(value, form) or not self.least <= len(value) <= self.most:
            raise ValueError(
                f"{place} is {shown(value)}, not a {word} of {self.least} to {self.most} values"
            )
        if self.key is not None:
            for key in value:
                self.key.check(key, f"a key of {place}")
        pairs = enumerate(value) if self.key is None else value.items()
        for key, part in pairs:
            self.kind.check(part, f"{place}.{str(key)[:60]}")


@dataclass(frozen=True)
class Optional:
    """A value of a kind, or None."""

    kind: Any

    def check(self, value, place):
        if value is not None:
            self.kind.check(value, place)


@dataclass(frozen=True)
class Either:
    """The record whose name stands under `key`, or is `default`; names: {name: Record}.

    Of a name that is not here, dense tensors and plain values are wanted.
    """

    key: str
    default: str
    names: dict

    def check(self, value, place):
        if not isinstance(value, dict):
            raise ValueError(f"{place} is {shown(value)}, not a dictionary")
        name = value.get(self.key, self.default)
        NAME.check(name, f"{place}.{self.key}")
        self.names.get(name, Each(WEIGHT_OR_PLAIN, key=NAME, most=100)).check(value, place)


# ---------------------------------------------------------------- single values


@dataclass(frozen=True)
class Kind:
    """A kind of value, in words, and whether a value is one."""

    wanted: str
    holds: Callable[[Any], bool]

    def check(self, value, place):
        """Raises ValueError, with the place of the value in the checkpoint, for another value."""
        if not self.holds(value):
            raise ValueError(f"{place} is {shown(value)}, not {self.wanted}")


def shown(value):
    """A value in a message, in a few words of one line."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    try:
        words = " ".join(short.repr(value).split())
    except ValueError:  # a number of more digits than Python prints
        return f"a {type(value).__name__} of too many digits"
    return words if len(words) <= LONGEST_SHOWN else f"{words[: LONGEST_SHOWN - 3]}..."


def number(kind, low, high, *, above=False):
    """The numbers from `low` to `high`, as cli.number takes them; of int, True is none."""
    kinds = (int,) if kind is int else (int, float)
    words = "a whole number" if kind is int else "a number"
    bound = "above" if above else "from"

    def holds(value):
        return type(value) in kinds and low <= value <= high and (value != low or not above)

    return Kind(f"{words} {bound} {low:g} to {high:g}", holds)


def choice(names):
    """One of these values."""
    names = list(names)
    return Kind(
        f"one of {', '.join(map(str, names))}",
        lambda value: any(type(value) is type(name) and value == name for name in names),
    )


def is_dense(tensor):
    """Whether a tensor is strided, on the CPU, without gradient, and has each element once."""
    if type(tensor) is not torch.Tensor or tensor.requires_grad:
        return False
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def is_finite(tensor):
    """Whether no element is nan or infinite."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def tensor(dtype, *shape, low=-math.inf, high=math.inf):
    """Dense, finite tensors of a dtype and shape, elements from `low` to `high`; None: any size."""
    name = str(dtype).removeprefix("torch.")
    sizes = ", ".join("N" if size is None else str(size) for size in shape)
    ranged = "" if low == -math.inf else f" from {low:g} to {high:g}"

    def holds(value):
        if not isinstance(value, torch.Tensor) or value.dtype != dtype or not is_dense(value):
            return False
        if len(shape) != value.ndim or not is_finite(value):
            return False
        if any(size not in (None, has) for size, has in zip(shape, value.shape)):
            return False
        return value.numel() == 0 or (value.min().item() >= low and value.max().item() <= high)

    return Kind(f"a finite tensor {name} [{sizes}]{ranged}", holds)


def is_plain(value, depth=DEEPEST):
    """Whether a value is made of texts, finite numbers, lists and dictionaries, not too deep."""
    if value is None or type(value) in (bool, int):
        return True
    if type(value) is str:
        return len(value) <= LONGEST_TEXT
    if type(value) is float:
        return math.isfinite(value)
    if depth == 0:
        return False
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return isinstance(value, (list, tuple)) and all(is_plain(part, depth - 1) for part in value)


def is_random_state(value):
    """Whether torch's generator on the CPU takes a tensor as its state."""
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError):
        return False
    return True


PLAIN = Kind("made of texts, finite numbers, lists and dictionaries", is_plain)
FLAG = Kind("True or False", lambda value: type(value) is bool)
TEXT = Kind("a text", lambda value: type(value) is str and len(value) <= LONGEST_TEXT)
NAME = Kind("a name", lambda value: TEXT.holds(value) and bool(value))
FINITE = Kind("a finite number", lambda v: type(v) in (int, float) and math.isfinite(v))
DENSE = Kind("a dense tensor", lambda v: isinstance(v, torch.Tensor) and is_dense(v))
WEIGHT = Kind("a dense, finite tensor", lambda v: DENSE.holds(v) and is_finite(v))
WEIGHT_OR_PLAIN = Kind(
    "a dense, finite tensor, or a plain value", lambda v: WEIGHT.holds(v) or PLAIN.holds(v)
)
