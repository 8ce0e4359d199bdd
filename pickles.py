"""What a pickle of torch.save's would make, found without making anything.

    examine(stream, stored)    # a stream at the pickle's first byte

The pickle is a program for a small machine. Here it is run with nodes in the place of values: how
deep they are nested, how many there are, how large a storage and a tensor are said to be. What
would be code, or need more memory than the file vouches for, is refused before torch.load sees it.
"""

import math
import pickletools

MAX_STEPS = 3_000_000  # operations of the machine; of a log of 100,000 epochs 2,200,000
MAX_NODES = 2_000_000  # values; one that stands in several places counts in each
MAX_KEPT = 200_000  # values that the machine holds at a time, on its stack or by number
MAX_DEPTH = 50  # lists in lists, or dictionaries; a checkpoint of ours has 6
MAX_DIGITS = 2**64  # a whole number is below

ITEM_SIZES = {  # bytes of an element, by the storage's class
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch ComplexFloatStorage": 8,
    "torch ComplexDoubleStorage": 16,
    "torch.storage UntypedStorage": 1,
}
DENSE = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
ORDERED = "collections OrderedDict"
PLAIN_CALLS = ("torch Size", "torch device", "__builtin__ set")
BYTES = "_codecs encode"  # of a text, in latin1
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
KNOWN = {
    DENSE,
    PARAMETER,
    ORDERED,
    BYTES,
    *PLAIN_CALLS,
    *ITEM_SIZES,
    *(f"torch {d}" for d in DTYPES),
}
NO_TENSOR = "torch._utils _rebuild_"  # of another kind: sparse, quantised, nested, meta


class HoldsCode(ValueError):
    """The pickle names a class or a function that is no part of plain data."""


class Node:
    """A value the pickle would make.

    value: a text, a whole number, a tuple of nodes, or a Global, Storage or Tensor; None of what is
    not looked at; depth: levels of containers below it; count: of the values in it; contained:
    whether another value has it already, and it must not grow any more.
    """

    __slots__ = ("value", "depth", "count", "contained")

    def __init__(self, value=None, parts=()):
        self.value, self.depth, self.count, self.contained = value, 0, 1, False
        self.take(parts)

    def take(self, parts):
        """Puts nodes into this one. Raises ValueError for what is too deep, or too much."""
        for part in parts:
            part.contained = True
            self.depth = max(self.depth, part.depth + 1)
            self.count += part.count
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if self.count > MAX_NODES:
            raise ValueError(f"it holds more than {MAX_NODES:,} values")


class Global(str):
    """The name of a class or function, as "torch FloatStorage"."""


class Container:
    """A list or a dictionary: what is in it has been counted, and is forgotten."""


class Storage:
    """A piece of memory: how many elements of how many bytes."""

    def __init__(self, elements, item_size):
        self.elements, self.item_size = elements, item_size


class Machine:
    """Runs one pickle; see examine."""

    def __init__(self, stored):
        self.stored, self.stack, self.marks, self.memo = stored, [], [], {}
        self.tensor_bytes = 0

    def run(self, stream):
        for step, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            work = OPERATIONS.get(operation.name)
            if work is None:
                raise HoldsCode(f"it is no pickle of plain data ({operation.name})")
            if step > MAX_STEPS or len(self.stack) + len(self.memo) > MAX_KEPT:
                raise ValueError("its pickle is longer than any of tensors and plain values")
            work(self, argument)

    def pop(self, count):
        """The last `count` nodes, taken off the stack."""
        parts = self.stack[len(self.stack) - count :]
        if len(parts) < count:
            raise ValueError("its pickle takes what it has not made")
        del self.stack[len(self.stack) - count :]
        return parts

    def pop_mark(self):
        """The nodes since the last mark, taken off the stack."""
        return self.pop(len(self.stack) - self.marks.pop())

    def push(self, value, parts=()):
        self.stack.append(Node(value, parts))

    def fill(self, parts):
        """Puts nodes into the list or dictionary that is now last on the stack."""
        target = self.stack[-1]
        if not isinstance(target.value, Container):
            raise ValueError("its pickle fills what is no list or dictionary")
        if target.contained or any(part is target for part in parts):
            raise ValueError("it holds itself")
        target.take(parts)

    def whole_number(self, argument):
        if abs(argument) >= MAX_DIGITS:
            raise ValueError("it holds a number of more than 64 bits")
        self.push(argument)

    def named(self, name):
        if name.startswith(NO_TENSOR) and name not in KNOWN:
            raise ValueError(f"it holds tensors that are not dense ({name.split()[1]})")
        if name not in KNOWN:
            raise HoldsCode(f"it names {name.replace(' ', '.')}, which is no plain data")
        self.push(Global(name))

    def call(self, _):
        function, arguments = self.pop(2)
        name, given = function.value, arguments.value
        if not isinstance(name, Global) or not isinstance(given, tuple):
            raise ValueError("its pickle calls what is no function")
        if name == DENSE:
            self.tensor_bytes += bytes_of_tensor(given)
            self.push(None, given)
        elif name == ORDERED and not given:
            self.push(Container())
        elif name in PLAIN_CALLS or (name == PARAMETER and given):
            self.push(None, given)
        elif name == BYTES and [part.value for part in given[1:]] == ["latin1"]:
            self.push(None, given)
        else:
            raise ValueError(f"it calls {name.replace(' ', '.')}")

    def storage(self, _):
        """A storage is ("storage", class, key, place, elements), and None in old files."""
        (node,) = self.pop(1)
        parts = [part.value for part in node.value] if isinstance(node.value, tuple) else []
        if len(parts) not in (5, 6) or parts[0] != "storage" or parts[1] not in ITEM_SIZES:
            raise ValueError("it holds a storage of no known kind")
        key, elements, item_size = parts[2], parts[4], ITEM_SIZES[parts[1]]
        if len(parts) == 6 and parts[5] is not None:
            raise ValueError("it holds a view of a storage")
        if type(key) is not str or type(elements) is not int or elements < 0:
            raise ValueError("it holds a storage without a size")
        self.stored(key, elements * item_size)
        self.push(Storage(elements, item_size), [node])


def bytes_of_tensor(given):
    """The bytes of a tensor; given: nodes (storage, offset, sizes, strides, ...).

    Raises ValueError where it reaches beyond its storage, or is an expanded piece of it.
    """
    parts = [part.value for part in given]
    if len(parts) < 6 or not isinstance(parts[0], Storage):
        raise ValueError("it holds a tensor without a storage")
    storage, offset = parts[0], parts[1]
    sizes, strides = ([n.value for n in p] if isinstance(p, tuple) else None for p in parts[2:4])
    numbers = [offset, *(sizes or ()), *(strides or ())]
    if sizes is None or strides is None or len(sizes) != len(strides) or len(sizes) > MAX_DEPTH:
        raise ValueError("it holds a tensor without a shape")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("it holds a tensor of a negative size")
    elements = math.prod(sizes)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides))
    if elements > storage.elements or (elements and last >= storage.elements):
        raise ValueError(f"it holds a tensor {sizes} that is larger than what is stored of it")
    if offset > storage.elements:
        raise ValueError("it holds a tensor outside its storage")
    return elements * storage.item_size


def pushed(machine, argument):
    machine.push(argument)


def nothing(machine, argument):
    pass


def remember(machine, number):
    if not machine.stack:
        raise ValueError("its pickle takes what it has not made")
    machine.memo[number] = machine.stack[-1]


OPERATIONS = {
    **dict.fromkeys(("PROTO", "STOP"), nothing),
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE"), lambda m, _: m.push(None)),
    "BINFLOAT": lambda m, _: m.push(None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), Machine.whole_number),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), pushed),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), lambda m, _: m.push(Container())),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "TUPLE": lambda m, _: m.push(*[tuple(m.pop_mark())] * 2),
    "TUPLE1": lambda m, _: m.push(*[tuple(m.pop(1))] * 2),
    "TUPLE2": lambda m, _: m.push(*[tuple(m.pop(2))] * 2),
    "TUPLE3": lambda m, _: m.push(*[tuple(m.pop(3))] * 2),
    "APPEND": lambda m, _: m.fill(m.pop(1)),
    "SETITEM": lambda m, _: m.fill(m.pop(2)),
    "BUILD": lambda m, _: m.fill(m.pop(1)),
    **dict.fromkeys(("APPENDS", "SETITEMS"), lambda m, _: m.fill(m.pop_mark())),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, n: m.stack.append(m.memo[n])),
    "GLOBAL": Machine.named,
    "REDUCE": Machine.call,
    "BINPERSID": Machine.storage,
}


def examine(stream, stored):
    """The bytes of all tensors a pickle makes; the stream then stands behind the pickle.

    stream: binary, with the pickle in memory. stored(key, size): called for each storage, under
    which key and of how many bytes it is said to be; it raises ValueError where that is not so.
    Raises HoldsCode for what is no plain data, and ValueError for what is damaged, holds itself, is
    nested deeper than MAX_DEPTH, or is larger than what is stored of it.
    """
    machine = Machine(stored)
    try:
        machine.run(stream)
    except (KeyError, IndexError, TypeError, OverflowError, UnicodeDecodeError):
        raise ValueError("its pickle is damaged") from None
    return machine.tensor_bytes
