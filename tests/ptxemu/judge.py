"""Checks of a self-test's result and findings."""


class Failed(Exception):
    """A self-test's own."""


def close(got, expected, tolerance):
    error = (got.double() - expected.double()).abs().max().item()
    if not error <= tolerance:
        raise Failed(f"error {error:.3g}, allowed {tolerance:.3g}")


def same(got, expected):
    if not got.equal(expected):
        raise Failed(f"{(got != expected).sum()} of {got.numel()} values differ")


def clean(emulator):
    bad = [str(f) for f in emulator.findings if not f.is_note]
    if bad:
        raise Failed(bad[0])


def finds(emulator, *kinds):
    got = {f.kind for f in emulator.findings}
    missing = set(kinds) - got
    if missing:
        raise Failed(f"not found: {missing}; found {got}")
