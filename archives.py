"""Files of torch.save's: whole, or refused in bounded memory before torch.load sees them.

    seal(path)           # writes a digest of the whole file behind it
    sealed = check(path) # whether it has one; raises ValueError for a damaged or hostile file

A file is a zip archive: data.pkl, the structure, and a member for each storage. torch.load checks
neither the checksums of the members nor that a storage is as large as it is said to be. Here both
are checked, with what the pickle would make (pickles.py). The digest covers every byte: tensors,
config and the archive's own tables. It is the comment at the end of the archive, which readers of
zip archives, torch.load among them, pass over. Whoever writes other weights on purpose can make it
anew: it shows damage, not who wrote the file.

Of 45 MB on one core, the digest takes 0.07 s, the checksums 0.03 s, and torch.load 0.07 s.
"""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import pickles

LABEL = b"blake2b:"
DIGITS = 64  # hexadecimal
COMMENT = len(LABEL) + DIGITS
END = struct.Struct("<4s4H2LH")  # the last record of an archive, without its comment
WIDE = struct.Struct("<4sQ2H2L4Q4sLQL")  # its 64-bit form, which stands before it, and its locator
CHUNK = 2**20  # bytes read at a time
MAX_PICKLE = 2**24  # bytes of data.pkl; a network of 1,000 tensors has 200,000
MAX_MEMBERS = 65_534  # as many as an archive's last record can count
MAX_TABLE = 2**23  # bytes of the archive's table of members
MAX_HEADER = 2**22  # bytes of a safetensors header; 1,000 tensors have 100,000
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip
TENSORS_A_BYTE = 2  # bytes of tensors on a byte of the file: one storage may serve two


def check(path):
    """Whether a file of torch.save's has a digest, which then is right.

    Without one, as of older versions, the checksums alone are checked. Raises pickles.HoldsCode for
    a file that is no plain data, and ValueError for one that is damaged, or that would take more
    memory than twice the file and 200 MB.
    """
    path = Path(path)
    if path.is_fifo():  # it would be waited for, and cannot be read twice
        raise ValueError("it is a pipe")
    try:
        with path.open("rb") as file:
            start = file.read(len(OLD_MAGIC))
        if start[:4] == b"PK\x03\x04":
            sealed = check_digest(path)
            check_archive(path)
            return sealed
        if start == OLD_MAGIC:
            check_old(path)
            return False
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error):
        raise ValueError("its archive is damaged") from None
    except (struct.error, UnicodeDecodeError, OverflowError, KeyError, MemoryError):
        raise ValueError("its archive is damaged") from None
    raise ValueError("it is no archive of torch.save's")


# ---------------------------------------------------------------- the digest


def seal(path):
    """Writes the digest of an archive without a comment as its comment."""
    with open(path, "r+b") as file:
        file.seek(-2, io.SEEK_END)  # the comment's length
        file.write(struct.pack("<H", COMMENT))
        size = file.tell()
        file.seek(0)
        digest = digest_of(file, size)
        file.write(digest)


def digest_of(file, size):
    """LABEL and the digits, bytes, of the next `size` bytes of a file."""
    digest = hashlib.blake2b(digest_size=DIGITS // 2)
    while size:
        chunk = file.read(min(size, CHUNK))
        if not chunk:
            raise EOFError
        digest.update(chunk)
        size -= len(chunk)
    return LABEL + digest.hexdigest().encode()


def check_digest(path):
    """Whether an archive has a digest. Raises ValueError for a wrong one, or another comment."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size >= END.size and ends_at(file, size, comment=0):
            return False
        if size < END.size + COMMENT or not ends_at(file, size, comment=COMMENT):
            raise ValueError("the end of its archive is damaged")
        file.seek(0)
        digest = digest_of(file, size - COMMENT)
        if file.read() != digest:
            raise ValueError("its digest is of other bytes")
    return True


def ends_at(file, size, comment):
    """Whether an archive of `size` bytes ends with a record that has a comment of that length.

    Raises ValueError for a table of members that is larger than MAX_TABLE, or not before it.
    """
    place = size - comment - END.size
    file.seek(place)
    signature, _, _, _, members, table, start, length = END.unpack(file.read(END.size))
    if signature != b"PK\x05\x06" or length != comment:
        return False
    start, end = place_of_table(file, place, members, table, start)
    if members > MAX_MEMBERS or table > MAX_TABLE or start + table != end:
        raise ValueError("its archive has a table of no archive of torch.save's")
    return True


def place_of_table(file, place, members, table, start):
    """(first, last) bytes of an archive's table of members, which ends before the last records.

    members, table, start: how many, how many bytes and from where, as the record at `place` says.
    Raises ValueError where the 64-bit record says something else, or is said to be elsewhere: then
    two readers may find two tables, and what is checked here is not what torch.load reads.
    """
    if place < WIDE.size:
        return start, place
    file.seek(place - WIDE.size)
    wide = WIDE.unpack(file.read(WIDE.size))
    if wide[10] != b"PK\x06\x07":
        return start, place
    said = wide[0], wide[7], wide[8], min(wide[9], 2**32 - 1), wide[12]
    if said != (b"PK\x06\x06", members, table, start, place - WIDE.size):
        raise ValueError("its archive has two tables of members")
    return wide[9], place - WIDE.size


# ---------------------------------------------------------------- the archive


def check_archive(path):
    """Raises ValueError for an archive that is not as it says, and as torch.save writes it."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if (
            not members
            or len({name.lower() for name in names}) < len(names)  # torch.load asks for either
            or len({name.split("/")[0] for name in names}) != 1
        ):
            raise ValueError("its archive is empty, or has two folders, or two members of a name")
        if min(member.header_offset for member in members) != 0:
            raise ValueError("its archive begins with what is no archive")
        if any(part.compress_type or part.file_size != part.compress_size for part in members):
            raise ValueError("its archive is compressed, which torch.save's is not")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its archive says it is larger than the file")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged.partition('/')[2]} is wrong")
        sizes = {member.filename.partition("/")[2]: member.file_size for member in members}
        if sizes.get("data.pkl", MAX_PICKLE + 1) > MAX_PICKLE:
            raise ValueError("it has no data.pkl, or one of more than 16 MB")
        pickle = io.BytesIO(archive.read(f"{names[0].split('/')[0]}/data.pkl"))

    def stored(key, declared):
        if sizes.get(f"data/{key}") != declared:
            raise ValueError(f"its storage {key[:20]} is not as large as it is said to be")

    check_tensors(pickles.examine(pickle, stored), size)


def check_tensors(tensor_bytes, size):
    """Raises ValueError where the tensors of a file would take more memory than it vouches for."""
    if tensor_bytes > TENSORS_A_BYTE * size:
        raise ValueError("its tensors are larger than the file")


def check_old(path):
    """Raises ValueError for a file as torch.save wrote it before 1.6 that is not as it says.

    It is a row of pickles: the version, the machine, the structure, the keys of the storages; then
    come the storages. It has no checksums.
    """
    size, declared = path.stat().st_size, {}

    def stored(key, bytes_of_it):
        declared[key] = bytes_of_it
        if sum(declared.values()) > size:
            raise ValueError("its storages are larger than the file")

    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE))
    stream.seek(len(OLD_MAGIC))
    tensors = [pickles.examine(stream, stored) for _ in range(4)]
    check_tensors(sum(tensors), size)


# ---------------------------------------------------------------- safetensors


def safetensors_header(path):
    """({key: its part of the header}, where the bytes begin) of a safetensors file.

    Raises ValueError where the header is larger than MAX_HEADER, or its tensors than the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError("its header is larger than the file, or than any")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start, total = 8 + length, 0
    for part in header.values():
        first, last = part["data_offsets"]
        if type(first) is not int or type(last) is not int or not 0 <= first <= last:
            raise ValueError("a tensor of it ends before it begins")
        total += last - first
    if total > size - start:
        raise ValueError("its tensors are larger than the file")
    return header, start
