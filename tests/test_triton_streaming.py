"""Images without kept rows: bands of tiles, lists, likely seeds; whatever is missed is caught."""

import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

import setok_kernels as sk
from helpers import interpreter
from helpers.clusterings import assert_bit_equal
from setok_kernels import compiled, testing
from setok_triton import bands, density, stream

interpreter.repair()
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

CONFIG = sk.ClusterConfig(k=3, max_clusters=20, stop_residual=0.0)


@pytest.fixture(autouse=True)
def streaming(monkeypatch):
    monkeypatch.setitem(compiled.DENSE_LIMITS, "triton", 0)


def cluster(x, config=CONFIG, **kwargs):
    return sk.cluster_tokens(x, config, backend="triton", **kwargs)


@pytest.mark.parametrize("side", [*range(1, 12), 128, 129, 512])
def test_bands_have_each_pair_of_blocks_once(side):
    """With the rule of the kernel for the last band of an even number of blocks."""
    offsets = [o for first, width in bands.bands(side) for o in range(first, first + width)]
    assert offsets == list(range(1, side // 2 + 1))
    pairs = [
        frozenset((i, (i + o) % side)) for o in offsets for i in range(o if 2 * o == side else side)
    ]
    assert len(pairs) == len(set(pairs)) == side * (side - 1) // 2


@pytest.mark.parametrize("side", [2, 128, 512, 4096])
def test_a_band_has_a_few_times_the_columns_before_it(side):
    """So many candidates fit into the free slots, and launches grow with the logarithm."""
    before = 1
    launches = list(bands.bands(side))
    for _, width in launches:
        assert 2 * width <= bands.GROWTH * before
        before += 2 * width
    assert len(launches) <= 1 + torch.tensor(side).log2() / 2


@pytest.mark.parametrize("kind", ["integers", "duplicates", "vit"])
def test_several_bands(kind):
    """Ten blocks of tokens, ragged at the end; two images of other lengths."""
    lengths = [300, 129, 0, 40]
    packed, cu_seqlens, _, _ = testing.ragged_batch(lengths, 6, exact=kind == "integers")
    if kind == "duplicates":
        packed = testing.duplicate_tokens(1, sum(lengths), 6, distinct=60)[0]
    exact = kind != "vit"
    config = sk.ClusterConfig(k=5, max_clusters=6)
    testing.check_backend("triton", packed, config, cu_seqlens=cu_seqlens, exact=exact)


@pytest.mark.parametrize("k", [1, 16, 17, 40])
def test_long_lists(k):
    """Up to MAX_LISTED neighbours come from bands, more from a search of all rows."""
    x = testing.integer_tokens(1, 140, 6)
    assert k <= density.MAX_LISTED or k > 16
    config = sk.ClusterConfig(k=k, max_clusters=4)
    testing.check_backend("triton", x, config, exact=True)


@pytest.mark.parametrize("kind", ["falling", "equal", "duplicates"])
def test_lists_that_are_too_short_lose_nothing(kind):
    """More candidates than slots: ever nearer tokens, and ties."""
    steps = torch.arange(300.0)
    x = {
        # Each token's neighbours are in the last blocks of its bands.
        "falling": lambda: torch.stack([(7 * steps) % 300, steps * 0], 1)[None],
        "equal": lambda: torch.ones(1, 300, 2),
        "duplicates": lambda: testing.duplicate_tokens(1, 300, 4, distinct=2),
    }[kind]()
    full = []
    search = density.search_rows

    def spied(*args):
        full.append(int(args[-1].p_count.sum()))
        search(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "search_rows", spied)
        patch.setattr(bands, "slots_of", lambda k: 32)
        testing.check_backend("triton", x, sk.ClusterConfig(k=3, max_clusters=4), exact=True)
    assert full[0] > 0


def test_a_tie_with_the_token_before_in_a_later_band():
    """Token 255 is handed over after token 256, equally near to token 0, and precedes it."""
    x = torch.arange(320.0)[None, :, None] + 10
    x[0, 0], x[0, 255:257] = 0, 1
    out = testing.check_backend("triton", x, sk.ClusterConfig(k=1, max_clusters=4), exact=True)
    assert out.decisions.knn[0, 0] == 255


class Launcher:
    """Stand-in for a kernel that calls a function in place of each launch."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.function(grid, *args, **kwargs)


def test_a_seed_without_a_row_gets_the_same_bits(monkeypatch):
    """No candidates at all: every step computes the row of its seed."""
    x = testing.vit_like_tokens(2, 140, 17)
    out = cluster(x)
    replayed = cluster(x, decisions=out.decisions)

    def none(grid, loop, *args, **kwargs):
        loop.p_candidate.fill_(-1)

    monkeypatch.setattr(stream, "candidates_fwd_kernel", Launcher(none))
    assert_bit_equal(cluster(x), out)
    assert_bit_equal(cluster(x, decisions=out.decisions), out)
    assert_bit_equal(replayed, out)


def test_rows_of_other_candidates_are_caught(monkeypatch):
    """The comparators find rows that belong to other tokens."""
    x = testing.integer_tokens(1, 140, 6)
    kernel = stream.candidate_rows_fwd_kernel

    def shifted(grid, x, images, loop, *args, **kwargs):
        kernel[grid](x, images, loop, *args, **kwargs)
        loop.p_candidate.copy_(loop.p_candidate.roll(1, 1))

    monkeypatch.setattr(stream, "candidate_rows_fwd_kernel", Launcher(shifted))
    with pytest.raises(AssertionError):
        testing.check_backend("triton", x, CONFIG, exact=True)


@pytest.mark.parametrize("kind", ["distinct", "ties", "close", "few", "zeros", "none"])
def test_candidates_are_the_highest(kind):
    """Never more than fit; those left out are no higher, up to the bits that are compared."""
    generator = torch.Generator().manual_seed(0)
    priority = {
        "distinct": lambda: torch.rand(400, generator=generator),
        "ties": lambda: torch.randint(0, 4, (400,), generator=generator).float(),
        "close": lambda: 0.5 + 1e-6 * torch.rand(400, generator=generator),
        "few": lambda: torch.where(torch.arange(400) < 20, torch.rand(400), -1.0),
        "zeros": lambda: torch.zeros(400),
        "none": lambda: torch.full((400,), -1.0),
    }[kind]()
    spans = len(priority)
    loop = stream.Loop(
        *(None, None, priority, 32 * torch.arange(spans, dtype=torch.int32), None, None),
        torch.ones(3, dtype=torch.int32),
        torch.full((stream.CANDIDATES,), -7, dtype=torch.int32),
        None,
    )
    stream.candidates_fwd_kernel[(1,)](
        *(loop, torch.zeros(1, 8, dtype=torch.int64), 0, 8, spans, 8),
        **dict(REPLAY=False, CANDIDATES=stream.CANDIDATES, ROUND=stream.ROUND, BLOCK_P=512),
    )
    chosen = loop.p_candidate[loop.p_candidate >= 0].long() // 32
    assert (loop.p_candidate >= -1).all() and len(chosen) == len(set(chosen.tolist()))
    left = torch.ones(spans, dtype=torch.bool)
    left[chosen] = False
    if len(chosen) and left.any():
        assert priority[left].max() <= priority[chosen].min() * (1 + 2**-7)
    if kind in ("distinct", "few"):
        assert 0.9 * min(stream.CANDIDATES, int((priority >= 0).sum())) <= len(chosen) <= 64


def test_most_seeds_are_candidates(monkeypatch):
    """The candidates of a round have the seeds of most of its steps, even with few spans."""
    x = testing.vit_like_tokens(1, 1024, 8)
    chosen, kernel = [], stream.candidates_fwd_kernel

    def spied(grid, loop, *args, **kwargs):
        kernel[grid](loop, *args, **kwargs)
        chosen.append(set(loop.p_candidate[0].tolist()) - {-1})

    monkeypatch.setattr(stream, "candidates_fwd_kernel", Launcher(spied))
    config = sk.ClusterConfig(k=3, max_clusters=32, stop_residual=0.0)
    seeds = cluster(x, config).decisions.seeds[0].tolist()
    rounds = [seeds[i : i + stream.ROUND] for i in range(0, 32, stream.ROUND)]
    found = sum(seed in known for known, of in zip(chosen, rounds, strict=True) for seed in of)
    assert found >= 24 and max(map(len, chosen)) <= stream.CANDIDATES
