"""Tar archives of small images for tests."""

import io
import tarfile

from PIL import Image

from setokim.data import BrokenSampleError


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
