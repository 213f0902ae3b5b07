"""pack and what it returns, on the results of every method, against plain loops."""

import dataclasses
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from setok_kernels import testing

STATISTICS = ("images", "rows", "sizes", "seeds", "seed_positions", "centroids")
PER_ROW = ("tokens", *STATISTICS)
FIELDS = ("cu_seqlens", *PER_ROW)
ORDERS = ("seed", "raster", "size")
# Every property runs on each method.
SOME = settings(max_examples=25)
METHODS = {
    "cluster": lambda x, **layout: sk.cluster_tokens(x, sk.ClusterConfig(max_clusters=5), **layout),
    "paper": lambda x, **layout: sk.cluster_tokens(
        x, sk.ClusterConfig.paper(max_clusters=4), **layout
    ),
    "dpc_knn": lambda x, **layout: sk.dpc_knn(x, 4, k=3, **layout),
    "threshold_greedy": lambda x, **layout: sk.threshold_greedy(x, 0.43, **layout),
}


@pytest.fixture(params=METHODS.values(), ids=METHODS, scope="session")
def method(request):
    return request.param


@st.composite
def ragged(draw):
    """Images or videos of different sides, some of them empty, the same packed and padded."""
    sides = draw(st.sampled_from([(5, 5), (3, 3, 3)]))
    grid = st.tuples(*(st.integers(1, side) for side in sides))
    grids = draw(st.lists(st.one_of(st.just((0,) * len(sides)), grid, grid), max_size=4))
    lengths = [math.prod(grid) for grid in grids]
    seed, kind = draw(st.integers(0, 2**16)), draw(st.booleans())
    return grids, testing.ragged_batch(lengths, 3, seed, exact=kind)


def both(method, batch):
    """Tokens and result of the packed and of the padded images, with the same labels."""
    packed, cu_seqlens, padded, mask = batch
    one = method(packed, cu_seqlens=cu_seqlens)
    two = method(padded, token_mask=mask)
    # Rounding may depend on the layout; what is tested here starts from equal labels.
    labels = torch.full_like(two.labels, -1)
    labels[mask] = one.labels
    change = dict(labels=labels, counts=one.counts)
    if isinstance(two, sk.Clusters):
        change["decisions"] = dataclasses.replace(two.decisions, seeds=one.centres)
    else:
        change["centres"] = one.centres
    return (packed, one), (padded, dataclasses.replace(two, **change))


def image_alone(out, b, grid):
    """Image `b` of a packed result as a padded result of its own."""
    start, end = out.cu_seqlens[b : b + 2].tolist()
    labels, counts = out.labels[None, start:end], out.counts[b : b + 1]
    layout = dict(grid=grid, cu_seqlens=None, max_seqlen=None)
    if isinstance(out, sk.Clusters):
        layout["decisions"] = dataclasses.replace(out.decisions, seeds=out.centres[b : b + 1])
        layout["masks"] = out.masks[None, :, start:end]
        return dataclasses.replace(out, labels=labels, counts=counts, **layout)
    centres = out.centres[b : b + 1]
    return sk.HardClusters(labels=labels, counts=counts, centres=centres, **layout)


def place_of(token, sides):
    """Where a token is on a grid, of which `sides` has all sides but the first."""
    place = []
    for side in reversed(sides):
        token, last = divmod(token, side)
        place.insert(0, last)
    return (token, *place)


def plain(out, labels, b, tokens, drop_empty, order, sides):
    """The rows of image `b` from lists and fractions, one dict each."""
    residual = int(out.counts[b]) if isinstance(out, sk.Clusters) else None
    last = int(out.counts[b]) - (residual is None)
    found = []
    for row in range(last + 1):
        members = [i for i, label in enumerate(labels) if label == row]
        if drop_empty and not members:
            continue
        seed = -1 if row == residual else int(out.centres[b, row])
        seat = (-1,) * (len(sides) + 1) if seed < 0 else place_of(seed, sides)
        mean = seat
        if members:
            places = [place_of(i, sides) for i in members]
            mean = [float(Fraction(sum(axis), len(members))) for axis in zip(*places, strict=True)]
        found.append(
            dict(
                tokens=tokens[b, row],
                images=torch.tensor(b),
                rows=torch.tensor(row),
                sizes=torch.tensor(len(members)),
                seeds=torch.tensor(seed),
                seed_positions=torch.tensor(seat, dtype=torch.float32),
                centroids=torch.tensor(mean, dtype=torch.float32),
            )
        )
    if order == "raster":
        found.sort(key=lambda r: raster_key(r["centroids"].tolist()))
    elif order == "size":
        found.sort(key=lambda r: -int(r["sizes"]))
    return found


def raster_key(centroid):
    """What `order="raster"` sorts by."""
    return [*map(round, centroid[:-1]), centroid[-1]]


def assert_plain(packed, images):
    """`packed` has these rows (a list of dicts for each image) and nothing else."""
    rows = [row for image in images for row in image]
    assert len(packed.rows) == len(rows)
    for name in PER_ROW:
        got = getattr(packed, name)
        if rows:
            expected = torch.stack([row[name] for row in rows])
            assert got.dtype == expected.dtype and torch.equal(got, expected), name
        else:
            assert got.shape[0] == 0
    offsets = [0, *itertools.accumulate(len(image) for image in images)]
    assert packed.cu_seqlens.dtype == torch.int32 and packed.cu_seqlens.tolist() == offsets
    assert packed.max_seqlen == max((len(image) for image in images), default=0)


def assert_same(a, b, fields=FIELDS):
    for name in fields:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.max_seqlen == b.max_seqlen and a.num_rows == b.num_rows


def rows_of(out, dim=2, seed=0):
    """Arbitrary tokens for all rows of a result."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out.counts.shape[0], out.num_rows, dim, generator=generator)


@SOME
@given(case=ragged(), drop_empty=st.booleans(), order=st.sampled_from(ORDERS), own=st.booleans())
def test_all_fields_are_those_of_a_plain_loop(method, case, drop_empty, order, own):
    grids, batch = case
    inner = [sides for _, *sides in grids] if own else [[10**6]] * len(grids)
    passed = (torch.tensor(grids) if grids else torch.zeros(0, 2)).long() if own else None
    (_, one), (_, two) = both(method, batch)
    tokens = rows_of(one)
    labels = [image.tolist() for image in one.labels.split(one.cu_seqlens.diff().tolist())]
    expected = [
        plain(one, labels[b], b, tokens, drop_empty, order, sides) for b, sides in enumerate(inner)
    ]
    assert_plain(one.pack(tokens, drop_empty, order, passed), expected)
    assert one.num_rows == two.num_rows
    assert_plain(two.pack(tokens, drop_empty, order, passed), expected)


@SOME
@given(case=ragged(), drop_empty=st.booleans(), order=st.sampled_from(ORDERS))
def test_packed_equals_padded_equals_loop(method, case, drop_empty, order):
    grids, batch = case
    (x, one), (y, two) = both(method, batch)
    a, b = (
        o.pack(sk.merge_tokens(t, o), drop_empty, order, grids) for t, o in ((x, one), (y, two))
    )
    torch.testing.assert_close(a.tokens, b.tokens, rtol=1e-5, atol=1e-6)
    assert_same(a, b, ("cu_seqlens", *STATISTICS))
    tokens = sk.merge_tokens(x, one)
    for i, grid in enumerate(grids):
        alone = image_alone(one, i, grid).pack(tokens[i : i + 1], drop_empty, order)
        assert (alone.images == 0).all()
        for name in ("tokens", *STATISTICS[1:]):
            assert torch.equal(getattr(alone, name), getattr(a, name)[a.images == i]), name


@pytest.mark.parametrize("mask", [False, True])
@SOME
@given(
    grid=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_the_grid_of_the_input_is_the_default(method, mask, grid, seed, data):
    number = math.prod(grid)
    x = testing.planted_clusters(2, number, 3, 4, seed)[0].unflatten(1, grid)
    layout = {}
    if mask:
        bits = st.lists(st.booleans(), min_size=number, max_size=number)
        layout["token_mask"] = torch.tensor([data.draw(bits), data.draw(bits)]).view(x.shape[:-1])
    out = method(x, **layout)
    tokens = rows_of(out)
    expected = [
        plain(out, out.labels[b].tolist(), b, tokens, True, "raster", grid[1:]) for b in range(2)
    ]
    assert out.grid == tuple(grid)
    assert_plain(out.pack(tokens, order="raster"), expected)
    flat = dataclasses.replace(out, grid=None)
    given_grids = flat.pack(tokens, order="raster", grids=[tuple(grid)] * 2)
    assert_same(given_grids, out.pack(tokens, order="raster"))
    assert (flat.pack(tokens).centroids[:, 0] == 0).all(), "without a grid all are in one line"


@SOME
@given(case=ragged(), drop_empty=st.booleans())
def test_orders_are_permutations_with_all_fields_moving_together(method, case, drop_empty):
    grids, batch = case
    for _, out in both(method, batch):
        packed = {name: out.pack(rows_of(out), drop_empty, name, grids) for name in ORDERS}
        first = packed["seed"]
        identity = first.images * out.num_rows + first.rows
        assert (identity.diff() > 0).all()
        for name in ORDERS:
            other = packed[name]
            assert torch.equal(other.cu_seqlens, first.cu_seqlens)
            assert torch.equal(other.images, first.images), "images stay where they are"
            back = (other.images * out.num_rows + other.rows).argsort()
            for field in PER_ROW:
                assert torch.equal(getattr(other, field)[back], getattr(first, field)), field
            assert torch.equal(other.unpack(), first.unpack())
        keys = {
            "raster": lambda p: map(raster_key, p.centroids.tolist()),
            "size": lambda p: (-p.sizes).tolist(),
        }
        for name, key in keys.items():
            other = packed[name]
            columns = other.images.tolist(), key(other), other.rows.tolist()
            listed = list(zip(*columns, strict=True))
            assert listed == sorted(listed)


@SOME
@given(case=ragged(), order=st.sampled_from(ORDERS))
def test_unpack_is_the_inverse(method, case, order):
    grids, batch = case
    for x, out in both(method, batch):
        hard = sk.merge_tokens(x, out)
        packed = out.pack(hard, True, order, grids)
        assert torch.equal(packed.unpack(), hard)
        assert torch.equal(out.pack(hard, False, order, grids).unpack(), hard)
        assert torch.equal(packed.tokens, out.pack(packed.unpack(), True, order, grids).tokens)
        if isinstance(out, sk.Clusters):
            soft = sk.merge_tokens(x, out, "soft")
            assert torch.equal(out.pack(soft, False, order, grids).unpack(), soft)
        kept = torch.zeros(hard.shape[:2], dtype=torch.bool)
        kept[packed.images, packed.rows] = True
        assert torch.equal(kept, out.occupied())
        tokens = rows_of(out)
        expected = torch.where(kept[:, :, None], tokens, 0)
        assert torch.equal(out.pack(tokens, True, order, grids).unpack(), expected)


@SOME
@given(case=ragged(), order=st.sampled_from(ORDERS))
def test_answers_reach_the_patches(method, case, order):
    """One new token for each packed row: every patch gets that of its cluster."""
    grids, batch = case
    for x, out in both(method, batch):
        packed = out.pack(sk.merge_tokens(x, out), order=order, grids=grids)
        new = torch.arange(1.0, len(packed.rows) + 1)[:, None]
        spread = sk.unmerge_tokens(packed.unpack(new), out).flatten()
        kept = torch.stack([packed.images, packed.rows], 1).tolist()
        number = {tuple(pair): n for n, pair in enumerate(kept, 1)}
        if out.cu_seqlens is None:
            image = torch.arange(len(grids))[:, None].expand_as(out.labels)
        else:
            image = torch.arange(len(grids)).repeat_interleave(out.cu_seqlens.diff())
        pairs = zip(image.flatten().tolist(), out.labels.flatten().tolist(), strict=True)
        assert spread.tolist() == [number.get(pair, 0) for pair in pairs]


@SOME
@given(case=ragged(), drop_empty=st.booleans())
def test_sizes_sum_to_the_labelled_tokens(method, case, drop_empty):
    grids, batch = case
    for _, out in both(method, batch):
        packed = out.pack(rows_of(out), drop_empty, "size", grids)
        assert packed.sizes.sum() == (out.labels >= 0).sum()
        assert (packed.sizes > 0).all() or not drop_empty
        assert torch.equal(packed.seeds < 0, (packed.seed_positions < 0).all(1))
        if isinstance(out, sk.Clusters):
            assert torch.equal(packed.seeds < 0, packed.rows == out.counts[packed.images])
        else:
            assert (packed.seeds >= 0).all(), "every row has a centre"


@SOME
@given(case=ragged(), order=st.sampled_from(ORDERS))
def test_padded(method, case, order):
    grids, batch = case
    for x, out in both(method, batch):
        packed = out.pack(sk.merge_tokens(x, out), order=order, grids=grids)
        shape = (len(grids), packed.max_seqlen)
        padded, mask = packed.padded()
        assert padded.shape == (*shape, 3) and mask.shape == shape and mask.dtype == torch.bool
        assert torch.equal(mask.sum(1), packed.cu_seqlens.diff().long())
        assert torch.equal(padded[mask], packed.tokens) and (padded[~mask] == 0).all()
        for b, (start, end) in enumerate(itertools.pairwise(packed.cu_seqlens.tolist())):
            assert torch.equal(padded[b, : end - start], packed.tokens[start:end])
        rows, same = packed.padded(packed.rows)
        assert rows.shape == shape and torch.equal(rows[mask], packed.rows)
        assert torch.equal(same, mask)
        lengths = packed.cu_seqlens.diff().tolist()
        left, to_the_right = packed.padded(side="left")
        for b, length in enumerate(lengths):
            expected = padded[b].roll(packed.max_seqlen - length, 0)
            assert torch.equal(left[b], expected)
            assert to_the_right[b].tolist() == sorted(mask[b].tolist())
        assert torch.equal(left[to_the_right], packed.tokens)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_unpack_and_padded_take_any_features(method, shape, dtype):
    x = testing.planted_clusters(2, 9, 3, 3)[0]
    out = method(x)
    packed = out.pack(sk.merge_tokens(x, out), order="size")
    new = torch.ones(len(packed.rows), *shape, dtype=dtype)
    unpacked = packed.unpack(new)
    assert unpacked.dtype == dtype and unpacked.shape == (2, out.num_rows, *shape)
    assert (unpacked[out.occupied()] == 1).all() and (unpacked[~out.occupied()] == 0).all()
    for side in ("right", "left"):
        padded, mask = packed.padded(new, side)
        assert padded.dtype == dtype and padded.shape == (2, packed.max_seqlen, *shape)
        assert (padded[mask] == 1).all() and (padded[~mask] == 0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_gradients(method, order):
    x, cu_seqlens, _, _ = testing.ragged_batch([12, 0, 20], 3)
    out = method(x, cu_seqlens=cu_seqlens)
    tokens = rows_of(out).requires_grad_()
    packed = out.pack(tokens, order=order, grids=[(3, 4), (0, 0), (5, 4)])
    assert packed.cu_seqlens.diff().tolist()[1] == 0 and len(packed.rows) >= 2
    weight = torch.arange(1.0, packed.tokens.numel() + 1).view_as(packed.tokens)
    expected = torch.zeros_like(tokens).index_put((packed.images, packed.rows), weight)
    # Garbage in padding and in rows that were dropped gives no gradient.
    rows = expected.masked_fill(~out.occupied()[:, :, None], 1e9)
    pairs = [(packed.tokens, weight), (packed.unpack(), rows)]
    for side in ("right", "left"):
        padded, mask = packed.padded(side=side)
        spread = torch.full_like(padded, 1e9).masked_scatter(mask[:, :, None], weight)
        pairs.append((padded, spread))
    for value, grad in pairs:
        (got,) = torch.autograd.grad(value, tokens, grad, retain_graph=True)
        assert torch.equal(got, expected)
    for name in STATISTICS:
        assert not getattr(packed, name).requires_grad, name


@pytest.mark.parametrize("order", ORDERS)
def test_gradient_from_the_answers_to_the_input(method, order):
    x = testing.planted_clusters(2, 12, 3, 3)[0].double().requires_grad_()
    out = method(x)
    packed = out.pack(sk.merge_tokens(x, out), order=order)
    new = packed.tokens.square()
    spread = sk.unmerge_tokens(packed.unpack(new), out)
    (got,) = torch.autograd.grad(spread.sum(), x)
    # The sum is that of n_c * |mean_c|^2, whose gradient by a member is 2 mean_c.
    mean = sk.unmerge_tokens(packed.unpack(), out)
    torch.testing.assert_close(got, 2 * mean)


@pytest.mark.parametrize("drop_empty", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "shape, grids",
    [
        ((0, 6, 3), []),
        ((0, 2, 3, 3), None),
        ((2, 0, 3), [(0, 0), (0, 7)]),
        ((2, 0, 4, 3), None),
        ((2, 4, 0, 3), None),
        ((0, 3, 2, 3, 3), None),
        ((2, 3, 0, 4, 3), None),
        ((2, 0, 3), torch.tensor([[0, 0, 0], [2, 0, 3]])),
    ],
)
def test_nothing_to_pack(method, shape, grids, order, drop_empty):
    x = torch.zeros(shape, requires_grad=True)
    out = method(x)
    packed = out.pack(sk.merge_tokens(x, out), drop_empty, order, grids)
    # An image without tokens still has a residual, which is row 0.
    images = shape[0] if isinstance(out, sk.Clusters) and not drop_empty else 0
    axes = len(shape) - 2 if grids is None else torch.as_tensor(grids).shape[-1]
    assert_residuals(packed, images, shape[0], out.num_rows, max(axes, 2))
    packed.unpack().sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize("drop_empty", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "grids", [None, [(2, 2), (0, 0)], torch.tensor([[1, 4], [2, 2]]), [(1, 2, 2), (0, 0, 0)]]
)
def test_all_masked(method, grids, order, drop_empty):
    x = testing.integer_tokens(2, 4, 3)
    out = method(x, token_mask=torch.zeros(2, 4, dtype=torch.bool))
    packed = out.pack(sk.merge_tokens(x, out), drop_empty, order, grids)
    images = 2 if isinstance(out, sk.Clusters) and not drop_empty else 0
    axes = 2 if grids is None else len(grids[0])
    assert_residuals(packed, images, 2, out.num_rows, axes)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
@pytest.mark.parametrize("order", ORDERS)
def test_nothing_to_pack_in_packed_input(method, lengths, order):
    x, cu_seqlens, _, _ = testing.ragged_batch(lengths, 3)
    out = method(x, cu_seqlens=cu_seqlens)
    packed = out.pack(sk.merge_tokens(x, out), order=order, grids=[(0, 0)] * len(lengths))
    assert_residuals(packed, 0, len(lengths), out.num_rows)


def assert_residuals(packed, images, batch, num_rows, axes=2):
    """Nothing is packed but the residual, without members, of the first `images` images."""
    assert packed.tokens.shape == (images, 3) and (packed.tokens == 0).all()
    assert packed.images.tolist() == list(range(images)) and (packed.rows == 0).all()
    assert (packed.sizes == 0).all() and (packed.seeds == -1).all()
    assert packed.seed_positions.shape == packed.centroids.shape == (images, axes)
    assert (packed.seed_positions == -1).all() and (packed.centroids == -1).all()
    assert packed.cu_seqlens.shape == (batch + 1,) and packed.max_seqlen == min(images, 1)
    assert packed.unpack().shape == (batch, num_rows, 3)
    for side in ("right", "left"):
        padded, mask = packed.padded(side=side)
        assert padded.shape == (batch, packed.max_seqlen, 3)
        assert mask.shape == padded.shape[:2] and mask.sum() == images


@pytest.mark.parametrize("name", ["cluster", "dpc_knn", "threshold_greedy"])
def test_a_hundred_images_of_mixed_resolution(name):
    method, generator = METHODS[name], torch.Generator().manual_seed(0)
    grids = torch.randint(1, 10, (100, 2), generator=generator)
    x, cu_seqlens, _, _ = testing.ragged_batch(grids.prod(1).tolist(), 16, exact=True)
    out = method(x, cu_seqlens=cu_seqlens)
    packed = out.pack(sk.merge_tokens(x, out), order="raster", grids=grids)
    assert packed.max_seqlen > 3 and (packed.centroids[:, 0] > 0).any()
    for b, ((h, w), image) in enumerate(
        zip(grids.tolist(), x.split(grids.prod(1).tolist()), strict=True)
    ):
        own = method(image.reshape(1, h, w, 16))
        alone = own.pack(sk.merge_tokens(image.reshape(1, h, w, 16), own), order="raster")
        mine = packed.images == b
        torch.testing.assert_close(alone.tokens, packed.tokens[mine], rtol=1e-6, atol=1e-6)
        for field in STATISTICS[1:]:
            assert torch.equal(getattr(alone, field), getattr(packed, field)[mine]), field


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@SOME
@given(case=ragged(), drop_empty=st.booleans(), order=st.sampled_from(ORDERS))
def test_the_same_on_a_gpu(method, case, drop_empty, order):
    grids, batch = case
    for _, out in both(method, batch):
        tokens = rows_of(out)
        here = out.pack(tokens, drop_empty, order, grids)
        there = on_gpu(out).pack(tokens.cuda(), drop_empty, order, grids)
        for name in FIELDS:
            got = getattr(there, name)
            assert got.device.type == "cuda" and torch.equal(got.cpu(), getattr(here, name)), name
        assert there.max_seqlen == here.max_seqlen
        assert torch.equal(there.unpack().cpu(), here.unpack())
        for side in ("right", "left"):
            for a, b in zip(there.padded(side=side), here.padded(side=side), strict=True):
                assert torch.equal(a.cpu(), b)


def on_gpu(value):
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: on_gpu(getattr(value, n)) for n in names})
    return value
