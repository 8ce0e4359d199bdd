"""Files of torch.save's that are damaged or hostile: refused in one line, before they cost memory.

Every hostile file is written byte by byte here: torch.save would not write it.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT

import archives
import checkpoints
import pickles
import strangers
from cli import UserError

HUGE = 10**12


@pytest.fixture
def path(tmp_path):
    """Where a test writes its file."""
    return tmp_path / "f.pt"


@pytest.fixture
def whole(path):
    """The path of a whole file of three tensors, with a digest."""
    torch.save({"a": torch.arange(30.0), "b": torch.ones(2, 3), "c": [1, "x", None]}, path)
    archives.seal(path)
    return path


def refused(path):
    """Why a file is refused: one line of a ValueError."""
    with pytest.raises(ValueError) as raised:
        archives.check(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200
    return str(raised.value)


# ---------------------------------------------------------------- whole


def test_a_sealed_file_has_a_digest_and_is_what_it_was(whole):
    assert archives.check(whole) is True
    assert torch.equal(torch.load(whole, weights_only=True)["a"], torch.arange(30.0))
    with zipfile.ZipFile(whole) as archive:
        assert archive.testzip() is None


def test_a_file_without_a_digest_is_told_from_one_with(path):
    torch.save({"a": torch.ones(3)}, path)
    assert archives.check(path) is False


def test_a_file_of_the_format_before_zip_is_read(path):
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert archives.check(path) is False


LAYOUTS = {
    "channels last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "a view of a storage": torch.arange(20.0)[4:9],
    "columns of a matrix": torch.ones(4, 5)[:, 1:3],
    "a scalar": torch.tensor(3),
    "no element": torch.zeros(0, 3),
    "no element of an empty storage": torch.zeros(0),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "complex": torch.ones(3, dtype=torch.complex64),
    "a parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_every_layout_pass(layout, new, path):
    torch.save([LAYOUTS[layout]] * 2, path, _use_new_zipfile_serialization=new)
    archives.check(path)


def test_what_torch_saves_beside_tensors_passes(path):
    state = torch.nn.Conv2d(1, 1, 1).state_dict()  # an OrderedDict with metadata
    others = {"size": torch.Size([1]), "dtype": torch.float32, "device": torch.device("cpu")}
    torch.save({"state": state, 3: (1, 2**40, -1.5, True, None, {1, 2}, b"\xff")} | others, path)
    archives.check(path)


# ---------------------------------------------------------------- damaged


def test_no_byte_can_be_changed(whole):
    data = whole.read_bytes()
    for place in range(0, len(data), 3):
        whole.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused(whole)


def test_no_byte_can_be_lost_or_added(whole):
    data = whole.read_bytes()
    for place in range(0, len(data), 7):
        for damaged in (data[:place], data[:place] + b"x" + data[place:], data + data[:place]):
            if damaged != data:
                whole.write_bytes(damaged)
                refused(whole)


def test_a_digest_that_is_cut_off_is_missed(whole):
    whole.write_bytes(whole.read_bytes()[: -archives.COMMENT])
    assert "end of its archive is damaged" in refused(whole)


def test_without_a_digest_no_stored_value_can_be_changed(path):
    torch.save({"a": torch.arange(30.0), "b": [1, "x"]}, path)
    data, content = path.read_bytes(), torch.load(path, weights_only=True)
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            archives.check(path)
            found = torch.load(path, weights_only=True)
        except Exception:
            continue
        assert torch.equal(found["a"], content["a"]) and found["b"] == content["b"]


OTHERS = {
    "nothing": b"",
    "a text": b"hello",
    "a pickle": pickle.dumps({"a": 1}),
    "the beginning of an archive": b"PK\x03\x04",
    "an archive of nothing": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_archive_is_refused(kind, path):
    path.write_bytes(OTHERS[kind])
    refused(path)


# ---------------------------------------------------------------- pickles, assembled by hand


def text(words):
    data = words.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def whole_number(value):
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x10" + value.to_bytes(16, "little")


def storage(elements, kind="FloatStorage", key="0"):
    """The opcodes of a storage that says it has so many elements."""
    parts = text("storage") + named("torch", kind) + text(key) + text("cpu")
    return b"(" + parts + whole_number(elements) + b"tQ"


def tensor(elements, sizes, strides, offset=0):
    """The opcodes of a tensor: _rebuild_tensor_v2(storage, offset, sizes, strides, False, {})."""
    shape, steps = (b"(" + b"".join(map(whole_number, part)) + b"t" for part in (sizes, strides))
    hooks = named("collections", "OrderedDict") + b")R"
    arguments = storage(elements) + whole_number(offset) + shape + steps + b"\x89" + hooks
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def write(path, opcodes, stored=16, members=(), compression=zipfile.ZIP_STORED):
    """Writes an archive whose data.pkl are these opcodes, with one storage of `stored` bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("f/data.pkl", b"\x80\x02" + opcodes + b".")
        archive.writestr("f/byteorder", "little")
        archive.writestr("f/data/0", bytes(stored))
        for name, data in members:
            archive.writestr(name, data)
        archive.writestr("f/version", "3\n")


def old_file(opcodes):
    """The bytes of a file as torch.save wrote it before it wrote archives."""
    start = archives.OLD_MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}."
    return start + b"\x80\x02" + opcodes + b"." + b"\x80\x02]."


def test_what_is_assembled_by_hand_is_what_torch_reads(path):
    write(path, tensor(4, [2, 2], [2, 1]))
    archives.check(path)
    assert torch.equal(torch.load(path, weights_only=True), torch.zeros(2, 2))


LEVELS = 10_000
LAUGHS = (  # a list by number 0, then lists of ten of the last
    b"]q\x00("
    + b"K\x01" * 10
    + b"e"
    + b"".join(
        b"]q" + bytes([level]) + b"(" + (b"h" + bytes([level - 1])) * 10 + b"e"
        for level in range(1, 30)
    )
)
HOSTILE = {
    "lists nested 10,000 deep": (b"]" * LEVELS + b"a" * (LEVELS - 1), "nested"),
    "tuples nested a million deep": (b")" + b"\x85" * 1_000_000, "nested"),
    "dictionaries nested": (b"}K\x01" * LEVELS + b"K\x01" + b"s" * LEVELS, "nested"),
    "a list of lists of lists, ten each": (LAUGHS, "more than"),
    "a list that holds itself": (b"]q\x00h\x00a", "holds itself"),
    "a list that grows behind its holder": (b"]q\x00]q\x01h\x00ah\x00h\x01a", "holds itself"),
    "a million empty lists": (b"]" + b"(" + b"]" * 1_000_000 + b"e", "longer than"),
    "a tensor of 10^12 elements": (tensor(4, [HUGE], [1]), "larger than what is stored"),
    "an expanded tensor of 10^12": (tensor(4, [HUGE], [0]), "larger than what is stored"),
    "a tensor that ends behind its storage": (tensor(4, [2, 2], [4, 1]), "larger than"),
    "a tensor that begins behind it": (tensor(4, [1], [1], offset=4), "larger than"),
    "a tensor of no shape": (tensor(4, [2, 2], [1]), "without a shape"),
    "a tensor of a negative size": (tensor(4, [-1], [1]), "negative"),
    "a storage of 10^12 elements": (tensor(HUGE, [4], [1]), "not as large as it is said to be"),
    "a storage that is smaller": (tensor(3, [3], [1]), "not as large as it is said to be"),
    "a storage that is not there": (storage(4, key="7"), "not as large as it is said to be"),
    "a storage of no class": (storage(4, kind="float32"), "no known kind"),
    "a storage of a negative size": (storage(-1), "without a size"),
    "a hundred tensors of one storage": (
        b"(" + tensor(4000, [4000], [1]) * 100 + b"t",
        "larger than the file",
    ),
    "a number of 5,000 digits": (b"\x8b" + struct.pack("<i", 2100) + b"\x7f" * 2100, "LONG4"),
    "a number of 100 digits": (b"\x8a\x30" + b"\x7f" * 48, "64 bits"),
    "a value that was never kept": (b"h\x07", "damaged"),
    "a stack that is empty": (b"a", "has not made"),
    "an end of a list that never began": (b"t", "damaged"),
    "a storage made by a call": (named("torch", "FloatStorage") + b"(J\x00\xff\xff\x7ftR", "calls"),
    "bytes made by a call": (named("builtins", "bytearray") + b"(J\x00\xff\xff\x7ftR", "no plain"),
    "a call of what is no function": (b"K\x01)R", "no function"),
    "code": (named("os", "system") + b"(" + text("true") + b"tR", "names os.system"),
    "a filled tuple": (b")K\x01a", "no list"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused(kind, path):
    opcodes, words = HOSTILE[kind]
    write(path, opcodes, stored=16_000 if "hundred" in kind else 16)
    assert words in refused(path)


def test_a_value_kept_under_a_high_number_costs_nothing(path):
    """Python's own unpickler makes room for all numbers below it."""
    write(path, b"]r\xff\xff\xff\x7f")
    assert archives.check(path) is False


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_of_the_old_format_is_refused(kind, path):
    opcodes, words = HOSTILE[kind]
    path.write_bytes(old_file(opcodes))
    if kind not in ("a storage that is smaller", "a storage that is not there"):
        refused(path)  # in the old format these two are whole


def test_storages_of_an_old_file_are_not_larger_than_it(path):
    path.write_bytes(old_file(tensor(HUGE, [4], [1])))
    assert "larger than the file" in refused(path)


NOT_DENSE = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(HUGE, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_tensors_that_are_not_dense_are_refused(kind, path):
    torch.save({"a": NOT_DENSE[kind]()}, path)
    assert "not dense" in refused(path) or "no known kind" in refused(path)


# ---------------------------------------------------------------- archives that lie


def test_a_compressed_archive_is_refused(path):
    write(path, tensor(10**7, [10**7], [1]), 4 * 10**7, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    assert "compressed" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_a_name_are_refused(path):
    write(path, tensor(4, [4], [1]), members=[("f/data/0", bytes(16))])
    assert "two members of a name" in refused(path)


def test_two_folders_are_refused(path):
    write(path, tensor(4, [4], [1]), members=[("g/data/0", bytes(16))])
    assert "two folders" in refused(path)


def test_what_stands_before_an_archive_is_refused(whole):
    whole.write_bytes(b"PK\x03\x04" + bytes(60) + whole.read_bytes())
    refused(whole)


def test_a_pickle_of_more_than_16_mb_is_refused(path):
    write(path, text("x" * (archives.MAX_PICKLE + 1)))
    assert "16 MB" in refused(path)


@pytest.mark.parametrize("size", [0, 17, 2**31, 2**32 - 2])
def test_a_member_that_lies_about_its_size_is_refused(size, path):
    write(path, tensor(4, [4], [1]))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"f/data/0"))
    data[entry + 20 : entry + 28] = struct.pack("<2L", size, size)
    path.write_bytes(data)
    refused(path)


def test_a_table_of_a_million_members_is_refused_before_it_is_read(path):
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x"
    table = entry * 300_000
    end = archives.END.pack(b"PK\x05\x06", 0, 0, 300, 300, len(table), 4, 0)
    path.write_bytes(b"PK\x03\x04" + table + end)
    assert "table" in refused(path)


# ---------------------------------------------------------------- safetensors


def safetensors(header, data=bytes(16), length=None):
    """The bytes of a safetensors file; length: what it says of its header."""
    header = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(header) if length is None else length) + header.encode() + data


def part(first, last, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


SAFETENSORS = {
    "a header of 10^12 bytes": safetensors({"a": part(0, 16)}, length=HUGE),
    "a header longer than the file": safetensors({"a": part(0, 16)}, length=1000),
    "a header of 5 MB": safetensors({"a" * 5_000_000: part(0, 16)}),
    "lists nested 10,000 deep": safetensors("[" * LEVELS + "]" * LEVELS),
    "a tensor of 10^12": safetensors({"a": part(0, 4 * HUGE, [HUGE])}),
    "a tensor larger than its bytes": safetensors({"a": part(0, 16, [HUGE])}),
    "a thousand tensors of the same bytes": safetensors({str(k): part(0, 16) for k in range(1000)}),
    "an end before the beginning": safetensors({"a": part(16, 0)}),
    "a beginning before the file": safetensors({"a": part(-16, 0)}),
    "half a place": safetensors({"a": part(0.0, 16.0)}),
    "a list for a header": safetensors("[1, 2]"),
    "no places": safetensors({"a": {"dtype": "F32", "shape": [4]}}),
    "a dtype nobody knows": safetensors({"a": part(0, 16, dtype="F1")}),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_hostile_safetensors_are_refused(kind, tmp_path):
    (tmp_path / "f.safetensors").write_bytes(SAFETENSORS[kind])
    with pytest.raises(ValueError, match="f.safetensors is damaged, or no safetensors file$"):
        strangers.read_weights(tmp_path / "f.safetensors")


# ---------------------------------------------------------------- by way of what reads them


@pytest.mark.parametrize("kind", ["code", "a tensor of 10^12 elements"])
def test_a_stranger_and_a_checkpoint_that_are_hostile_are_refused(kind, path):
    write(path, HOSTILE[kind][0])
    with pytest.raises(ValueError, match="f.pt"):
        strangers.read_weights(path)
    with pytest.raises(UserError, match="f.pt is damaged, or no checkpoint of train.py's: it "):
        checkpoints.read(path)


MEASURE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import checkpoints
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        checkpoints.read(path)
    except checkpoints.UserError as error:
        print("refused", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
HUNGRY = {  # within all limits, but for the last
    "dictionaries": b"](" + b"}K\x01K\x02s" * 190_000 + b"e",
    "a text of wide letters": text("\U0001f600" + "x" * (2**24 - 100)),
    "a storage": tensor(2**33, [2**33], [1]),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is counted in kilobytes")
def test_what_is_refused_costs_at_most_200_mb(tmp_path):
    for kind, opcodes in HUNGRY.items():
        write(tmp_path / f"{kind}.pt", opcodes)
    command = [sys.executable, "-c", MEASURE, str(ROOT)]
    command += [str(tmp_path / f"{kind}.pt") for kind in HUNGRY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    kilobytes = [int(line.removeprefix("refused ")) for line in done.stdout.splitlines()]
    assert len(kilobytes) == len(HUNGRY)
    assert max(kilobytes) * 1024 < 200 * 10**6


def test_members_whose_names_differ_by_case_alone_are_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "DATA.PKL"):
            archive.writestr(f"archive/{name}", b"\x80\x02N.")
    assert "two members of a name" in refused(path)


@pytest.mark.parametrize("place", [-22 - 20 + 8, -22 - 76 + 48, -22 - 76 + 32])
def test_an_archive_whose_last_records_disagree_is_refused(place, path):
    """Of the locator, where the 64-bit record is; of that, where the table is, how many members."""
    torch.save({"a": torch.ones(4)}, path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert "two tables of members" in refused(path)


# ---------------------------------------------------------------- the small machine


def examined(value):
    """The bytes of tensors that examine finds in what torch.save writes of a value."""
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        stream = io.BytesIO(archive.read("archive/data.pkl"))
    return pickles.examine(stream, lambda key, size: None)


def test_the_bytes_of_tensors_are_counted():
    assert examined({"a": torch.ones(10), "b": [torch.ones(3, dtype=torch.int64)]}) == 40 + 24


def test_values_of_one_list_in_two_places_are_counted_twice(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_NODES", 20)
    shared = list(range(10))
    examined({"a": shared})
    with pytest.raises(ValueError, match="more than"):
        examined({"a": shared, "b": shared})


def test_the_stream_stands_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps({"a": [1, 2.5, "x"]}, 2) + b"rest")
    pickles.examine(stream, lambda key, size: None)
    assert stream.read() == b"rest"
