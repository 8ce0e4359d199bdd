"""The arrays of an .npz file, each checked by its header before memory is taken for it.

    with open_npz(path) as archive:
        members = members_of(archive)                   # {key: zipfile.ZipInfo}
        images = read_member(archive, members["train_images"])

numpy.load believes a header: it takes memory for 10^12 elements where the file says so, waits for a
pipe, and raises whatever the header's Python, the archive or its compression come to. Here all that
is a ValueError of one line, and a key that is there twice, or bytes behind an array, are refused.
"""

import io
import math
import os
import warnings
import zipfile

import numpy as np

from terminal import printable

MAX_HEADER = 10_000  # bytes of an array's header; numpy's own limit
VERSIONS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
OTHER_FORMAT = "it is of another format, or cut short; numpy.savez writes an .npz"


class HoldsObjects(ValueError):
    """An array is of Python objects, which would run code."""


def open_npz(path):
    """The open zipfile.ZipFile of an .npz. Raises ValueError for what is no such file."""
    if not os.path.isfile(path):
        raise ValueError("it is no file" if os.path.exists(path) else "there is none")
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise ValueError(error.strerror or OTHER_FORMAT) from None
    except Exception:  # a damaged table can raise anything at all
        raise ValueError(OTHER_FORMAT) from None


def members_of(archive):
    """{key: ZipInfo} of an open .npz. Raises ValueError where a key is there twice."""
    members = {}
    for member in archive.infolist():
        key = member.filename.removesuffix(".npy")
        if key in members:
            raise ValueError(f"it has two arrays called {printable(key)}")
        members[key] = member
    return members


def read_member(archive, member):
    """The array in a member of an open .npz.

    Raises HoldsObjects for one of Python objects, and ValueError for what is no array, is damaged,
    or would not fit into this machine's memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of what a header looks like
            with archive.open(member) as file:
                shape, dtype, start = header_of(file.read(MAX_HEADER))
            check_size(shape, dtype, member.file_size - start)
            with archive.open(member) as file:
                array = np.lib.format.read_array(file)
                file.read(1)  # at its end the checksum is verified
    except HoldsObjects:
        raise
    except Exception as error:  # a damaged member can raise anything at all
        words = str(error).strip().splitlines()
        why = words[0] if words else type(error).__name__
        raise ValueError(f"{printable(member.filename)}: {why}") from None
    return array


def header_of(head):
    """(shape, dtype, where the values begin) of an array by its first bytes. ValueError."""
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    if version not in VERSIONS:
        raise ValueError(f"version {version} of numpy's format is not read")
    length = int.from_bytes(head[8 : 10 if version == (1, 0) else 12], "little")
    if length > len(head):
        raise ValueError("its header is longer than any, or cut short")
    shape, _, dtype = VERSIONS[version](file)
    return shape, dtype, file.tell()


def check_size(shape, dtype, there):
    """Raises ValueError unless an array of this shape is as large as the bytes that are there."""
    if dtype.hasobject:
        raise HoldsObjects("it is an array of Python objects")
    size = math.prod(map(int, shape)) * dtype.itemsize
    if min(shape, default=0) < 0 or not dtype.itemsize or size != there:
        raise ValueError(f"its header says {dtype} {list(shape)}, and {there:,} bytes follow")
    if size > memory():
        raise ValueError(f"it is of {size:,} bytes, more than this machine's memory has")


def memory():
    """Bytes of this machine's memory; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf
