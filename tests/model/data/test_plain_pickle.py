import os
import pickle
import tracemalloc

import pytest

from setokim.data.plain_pickle import read_plain_pickle


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_execute_nothing(tmp_path, protocol):
    path, made = tmp_path / "refs.p", tmp_path / "made"
    plain = [{"ref_id": 1, "sentences": [{"raw": "le café", "tokens": ["a"]}], "box": (1.5, None)}]
    path.write_bytes(pickle.dumps(plain, protocol))
    assert read_plain_pickle(path) == plain
    path.write_bytes(pickle.dumps([plain, Evil(str(made))], protocol))
    with pytest.raises(
        ValueError, match=r"refs\.p: expected a pickle of plain values, got \w+\.mk"
    ):
        read_plain_pickle(path)
    assert not made.exists()


def test_pickles_of_python_2_and_broken_ones(tmp_path):
    path = tmp_path / "refs.p"
    # A list of one dict with a str, of protocol 0.
    path.write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'a dog'\np3\nsa.")
    assert read_plain_pickle(path) == [{"raw": "a dog"}]
    for data in (b"", b"no pickle", pickle.dumps([1, 2])[:-3]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"refs\.p: expected a pickle of plain values, got "):
            read_plain_pickle(path)


def sized(code, size, width):
    """Return a pickle whose argument claims more bytes than it has."""
    return b"\x80\x04" + code + size.to_bytes(width, "little") + b"abc."


BOMBS = {
    "LONG4": (sized(pickle.LONG4, 2**31 - 1, 4), "2147483654 bytes of 11"),
    "BINSTRING": (sized(pickle.BINSTRING, 2**31 - 1, 4), "2147483654 bytes of 11"),
    "BINUNICODE": (sized(pickle.BINUNICODE, 2**32 - 1, 4), "4294967302 bytes of 11"),
    "BINUNICODE8": (sized(pickle.BINUNICODE8, 2**33, 8), "8589934603 bytes of 15"),
    "BINBYTES": (sized(pickle.BINBYTES, 2**32 - 1, 4), "4294967302 bytes of 11"),
    "BINBYTES8": (sized(pickle.BINBYTES8, 2**62, 8), "4611686018427387915 bytes of 15"),
    "BYTEARRAY8": (sized(pickle.BYTEARRAY8, 2**34, 8), "17179869195 bytes of 15"),
    "FRAME": (sized(pickle.FRAME, 2**33, 8), "a frame of 8589934592 bytes"),
    "LONG_BINPUT": (
        b"\x80\x02]" + pickle.LONG_BINPUT + (2**31).to_bytes(4, "little") + b".",
        "memo index 2147483648 after 4 bytes",
    ),
    "PUT": (b"]p2147483648\n.", "memo index 2147483648 after 2 bytes"),
    # Lists of two references to one another: 2^40 values in 400 bytes.
    "references": (
        b"]" + b"".join(b"q%c0](h%ch%ce" % ((n,) * 3) for n in range(40)) + b".",
        "values that are nested or referenced too often",
    ),
    "itself": (b"]q\x00h\x00a.", "values that are nested or referenced too often"),
    "deep": (
        b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "values that are nested or referenced too often",
    ),
    "a set": (pickle.dumps({1}, 4), "a set"),
    "no stop": (b"]]]", "Ran out of input"),
    "no opcode": (b"\xff.", r"the opcode b'\\xff'"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_claimed_sizes_of_a_pickle_are_not_allocated(tmp_path, name):
    path = tmp_path / "refs.p"
    data, reason = BOMBS[name]
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"expected a pickle of plain values, got {reason}$"):
            read_plain_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_references_that_a_pickler_writes_are_read(tmp_path):
    path = tmp_path / "refs.p"
    tokens = ["a", "dog"]
    plain = [{"tokens": tokens, "again": tokens, "n": index} for index in range(300)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(plain, protocol))
        assert read_plain_pickle(path) == plain


def test_bytes_of_python_2_are_text(tmp_path):
    path = tmp_path / "refs.p"
    # A dict of two strings, the first in UTF-8, the second in Latin-1.
    path.write_bytes(b"}(U\x03rawU\x05caf\xc3\xa9U\x04sentU\x04caf\xe9u.")
    assert read_plain_pickle(path) == {"raw": "café", "sent": "café"}
