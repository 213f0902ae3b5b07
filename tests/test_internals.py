"""Kernels inside of the operators, by the optional module of a source build."""

import platform
import sys

import numpy as np
import pytest

internals = pytest.importorskip("setok_kernels._internals")

PANEL = 32


def test_there_are_kernels_for_every_instruction_set():
    x86 = platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin"
    isas = ["avx512bf16", "avx512", "avx2", "baseline"] if x86 else ["baseline"]
    info = internals.build_info()
    assert set(info) == {"compiler", "cxx_standard", "openmp", "isas", "isa"}
    assert info["isas"] == isas
    assert internals.cpu_isa() in isas


def test_the_choice_of_an_instruction_set():
    sets = internals.build_info()["isas"]
    for best in range(len(sets)):
        assert internals.choose_isa("", sets[best]) == sets[best]
        for wanted, name in enumerate(sets):
            if wanted >= best:
                assert internals.choose_isa(name, sets[best]) == name
                continue
            named = ", ".join(sets[best:])
            expected = f"SETOK_CPU_CAPABILITY: expected one of {named} on this processor, got"
            with pytest.raises(ValueError, match=f"^{expected} '{name}'$"):
                internals.choose_isa(name, sets[best])
    with pytest.raises(ValueError, match=r"^SETOK_CPU_CAPABILITY: expected one of .*, got 'AVX2'$"):
        internals.choose_isa("AVX2", sets[0])


@pytest.mark.parametrize("count", [1, 15, 16, 31, 32])
@pytest.mark.parametrize("dim", [1, 16, 37])
def test_a_panel_holds_tokens_side_by_side(count, dim):
    x = np.random.default_rng(0).standard_normal((count, dim), np.float32)
    packed = internals.pack_panel(x)
    assert packed.shape == (dim, PANEL)
    np.testing.assert_array_equal(packed[:, :count], x.T)
    assert not packed[:, count:].any()


@pytest.mark.parametrize("dim", [1, 127, 128, 129, 300])
def test_a_tile_holds_inner_products(dim):
    # Small integers: every order of the sum gives the same bits.
    a, b = np.random.default_rng(1).integers(-8, 9, (2, PANEL, dim)).astype(np.float32)
    tile = internals.multiply_panels(internals.pack_panel(a), internals.pack_panel(b))
    np.testing.assert_array_equal(tile, a @ b.T)


def test_a_product_has_the_same_bits_wherever_its_tokens_stand():
    x = np.random.default_rng(2).standard_normal((PANEL, 300), np.float32)
    tile = internals.multiply_panels(*[internals.pack_panel(x)] * 2)
    order = np.random.default_rng(3).permutation(PANEL)
    moved = internals.multiply_panels(*[internals.pack_panel(x[order])] * 2)
    np.testing.assert_array_equal(moved, tile[np.ix_(order, order)])


def bf16_numbers(seed, *shape):
    """Normal float32 numbers cut off to bfloat16."""
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)


needs_bf16 = pytest.mark.skipif(
    internals.multiply_bf16(*np.ones((2, 1, 1), np.float32)) is None,
    reason="the processor has no instructions for bfloat16 that are faster",
)


@needs_bf16
@pytest.mark.parametrize("count", [1, 16, 17, PANEL])
@pytest.mark.parametrize("dim", [1, 2, 31, 32, 33, 127, 128, 129, 300])
def test_products_of_bfloat16_integers_are_exact(count, dim):
    a, b = np.random.default_rng(1).integers(-8, 9, (2, count, dim)).astype(np.float32)
    tile = internals.multiply_bf16(a, b)
    np.testing.assert_array_equal(tile[:count, :count], a @ b.T)
    assert not tile[count:].any() and not tile[:, count:].any()


@needs_bf16
@pytest.mark.parametrize("dim", [37, 1152])
def test_sums_of_bfloat16_products_are_rounded_as_float32(dim):
    """A sum of 128 products, and of these sums, with half a unit in the last place each."""
    a, b = bf16_numbers(0, PANEL, dim), bf16_numbers(1, PANEL, dim)
    wide = a.astype(np.float64), b.astype(np.float64)
    error = abs(internals.multiply_bf16(a, b) - wide[0] @ wide[1].T)
    allowed = (min(dim, 128) + dim / 128) * 2.0**-24 * (abs(wide[0]) @ abs(wide[1]).T)
    assert (error <= allowed).all()


@needs_bf16
def test_a_bfloat16_product_has_the_same_bits_wherever_its_tokens_stand():
    x = bf16_numbers(2, PANEL, 300)
    tile, order = internals.multiply_bf16(x, x), np.random.default_rng(3).permutation(PANEL)
    np.testing.assert_array_equal(tile, tile.T)
    moved = internals.multiply_bf16(x[order], x[order])
    np.testing.assert_array_equal(moved, tile[np.ix_(order, order)])


@needs_bf16
def test_subnormal_bfloat16_numbers_count_as_zero():
    x = np.array([[2.0**-130, 3.0], [2.0**-70, 2.0**-70]], np.float32)
    tile = internals.multiply_bf16(x, x)
    assert tile[:2, :2].tolist() == [[9.0, 3 * 2.0**-70], [3 * 2.0**-70, 0.0]]


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("k", [1, 8, 40, 70])
@pytest.mark.parametrize("n", [1, 5, 64, 200])
def test_the_nearest_come_first_and_ties_by_index(n, k, include_self):
    row = np.random.default_rng(n).integers(0, 12, n).astype(np.float32)
    token = n // 2
    row[token] = 0
    others = [j for j in range(n) if include_self or j != token]
    expected = sorted(others, key=lambda j: (row[j], j))[:k]
    found = internals.nearest_in_row(row, token, k, include_self)
    assert found.tolist() == expected + [-1] * (k - len(expected))


@pytest.mark.parametrize("n", [1, 16, 100])
def test_a_scope_step_is_that_of_algorithm_1(n):
    generator = np.random.default_rng(n)
    row, score, scope = generator.random((3, n), np.float32)
    bandwidth, beta, temperature, offset = 0.7, 0.4, 0.2, 0.3
    mask, rest, mass = internals.scope_step(row, score, scope, bandwidth, beta, temperature, offset)
    phi = np.exp(-row.astype(np.float64) / bandwidth)
    alpha = 1 / (1 + np.exp(-(phi - beta * score - offset) / temperature))
    np.testing.assert_allclose(mask, scope * alpha, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(rest, scope * (1 - alpha), rtol=2e-6, atol=1e-7)
    assert mass == pytest.approx(mask.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: internals.pack_panel(x.repeat(3, 0)), "more tokens than a panel"),
        (lambda x: internals.pack_panel(x[0]), "x: an array of another shape"),
        (lambda x: internals.multiply_panels(x, x[:5]), "b: an array of another shape"),
        (lambda x: internals.multiply_bf16(x.repeat(3, 0), x), "more tokens than a panel"),
        (lambda x: internals.nearest_in_row(x[0], 99, 2), "token: outside of the row"),
        (lambda x: internals.nearest_in_row(x[0], 0, 0), "k: expected at least 1"),
        (lambda x: internals.scope_step(x[0], x[1], x[0, :3], 1, 0, 1, 0), "scope: an array"),
    ],
)
def test_misfits_are_refused(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(np.ones((PANEL, PANEL), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 1152])
def test_speed_of_a_tile(benchmark, dim):
    """A measurement, not a test: pytest --benchmark-only tests/test_internals.py."""
    x = np.random.default_rng(0).standard_normal((PANEL, dim), np.float32)
    panel = internals.pack_panel(x)
    benchmark(internals.multiply_panels, panel, panel, repeats=100)
