"""Tar archives of small images for tests."""

import io
import tarfile

from PIL import Image

from setokim.data import BrokenSampleError

LYING_SIZES = (2**33, 2**62, 2**80, -512, -1024, -(2**40))
LYING_KINDS = ("png", "pax", "longname", "other")


def encoded(colour, kind="png"):
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(stream, kind)
    return stream.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def header(name, size, kind=tarfile.REGTYPE):
    """Return a tar header with a claimed size."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    digits = b"%011o\0" % size if 0 <= size < 8**11 else size.to_bytes(12, "big", signed=True)
    if len(digits) == 12 and not 0 <= size < 8**11:
        digits = (b"\xff" if size < 0 else b"\x80") + digits[1:]
    block[124:136] = digits
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def lying_header(kind, size):
    """Return a header of one of `LYING_KINDS` that claims a size."""
    return {
        "png": header("b.png", size),
        "pax": header("b.png", size, tarfile.XHDTYPE),
        "longname": header("b.png", size, tarfile.GNUTYPE_LONGNAME),
        "other": header("b.cls", size),
    }[kind]


def write_lying_tar(path, kind, size):
    """Write two images and then a `lying_header`."""
    write_tar(path, [("0.png", encoded("red")), ("a.png", encoded("red"))])
    lying = lying_header(kind, size)
    path.write_bytes(path.read_bytes()[:2048] + lying + b"14 path=c.png\n".ljust(1024, b"\0"))
    return path


def reasons(dataset):
    """Caption or error of every sample, by its source."""
    found = {}
    for index in range(len(dataset)):
        add_reason(found, lambda index=index: dataset[index])
    return found


def add_reason(found, read):
    """Add what reading a sample gives: its caption by its source, or the error."""
    try:
        sample = read()
        found[sample.source] = sample.caption
    except BrokenSampleError as error:
        found[error.source] = error
