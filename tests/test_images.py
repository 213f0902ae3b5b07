"""Images of a batched result: out[i], out[i:j], len(out), and the images of packed rows."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from setok_kernels import testing

CONFIG = sk.ClusterConfig(k=3, max_clusters=5)
METHODS = {
    "cluster": lambda x, **layout: sk.cluster_tokens(x, CONFIG, **layout),
    "dpc_knn": lambda x, **layout: sk.dpc_knn(x, 4, k=3, **layout),
    "threshold_greedy": lambda x, **layout: sk.threshold_greedy(x, 0.43, **layout),
}
bounds = st.one_of(st.none(), st.integers(-6, 6))
slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1, -2]))


@pytest.fixture(params=METHODS.values(), ids=METHODS, scope="module")
def method(request):
    return request.param


def tensors_of(record, prefix=""):
    """Tensors by name, those of the decisions too."""
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, torch.Tensor):
            found[prefix + field.name] = value
        elif dataclasses.is_dataclass(value):
            found |= tensors_of(value, f"{field.name}.")
    return found


def pieces(out, name, value):
    """The part of a tensor that belongs to each image, from the documented shapes."""
    if out.cu_seqlens is None or name.split(".")[-1] in ("counts", "centres", "seeds"):
        return [value[i : i + 1] for i in range(out.counts.shape[0])]
    return value.split(out.cu_seqlens.diff().tolist(), -1 if name == "masks" else 0)


def assert_images(got, out, chosen):
    """`got` has the images `chosen` of `out`, and nothing else."""
    assert type(got) is type(out) and len(got) == len(chosen)
    assert got.grid == out.grid and got.num_rows == out.num_rows
    if out.cu_seqlens is None:
        assert got.cu_seqlens is got.max_seqlen is None
    else:
        lengths = [out.cu_seqlens.diff().tolist()[i] for i in chosen]
        assert got.cu_seqlens.diff().tolist() == lengths and got.cu_seqlens[0] == 0
        assert got.cu_seqlens.dtype == out.cu_seqlens.dtype
        assert got.max_seqlen == max(lengths, default=0)
    mine = tensors_of(got)
    assert mine.keys() == tensors_of(out).keys()
    for name, value in tensors_of(out).items():
        if name != "cu_seqlens":
            parts = pieces(out, name, value)
            axis = -1 if name == "masks" and out.cu_seqlens is not None else 0
            none = value.narrow(axis, 0, 0)
            expected = torch.cat([none, *(parts[i] for i in chosen)], axis)
            assert torch.equal(mine[name], expected), name
    if isinstance(out, sk.Clusters):
        assert got.counts is got.decisions.counts


@settings(max_examples=25)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 5, 9]), max_size=4),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_images_and_slices(method, lengths, seed, data):
    x, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 3, seed, exact=True)
    number, chosen = len(lengths), data.draw(slices)
    for out in (method(x, cu_seqlens=cu_seqlens), method(padded, token_mask=mask)):
        assert len(out) == number
        assert_images(out[chosen], out, range(number)[chosen])
        for i in range(-number, number):
            assert_images(out[i], out, [i % number])
        for i, image in enumerate(out):
            assert_images(image, out, [i])


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_one_image_of_a_batch_is_the_image_alone(method, lengths, seed):
    """On exact input: the same merge, pack and unmerge as of a clustering of that image."""
    x, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 3, seed, exact=True)
    inputs = [
        (x, dict(cu_seqlens=cu_seqlens), x.split(lengths)),
        (padded, dict(token_mask=mask), padded.split(1)),
    ]
    for tokens, layout, own in inputs:
        out = method(tokens, **layout)
        packed = out.pack(sk.merge_tokens(tokens, out), order="size")
        for i, image in enumerate(own):
            mine = out[i]
            merged = sk.merge_tokens(image, mine)
            spread = sk.unmerge_tokens(merged, mine)
            assert spread.shape == image.shape
            again, expected = mine.pack(merged, order="size"), packed.image(i)
            assert tensors_of(again).keys() == tensors_of(expected).keys()
            for name, value in tensors_of(again).items():
                assert torch.equal(value, getattr(expected, name)), name
            assert again.max_seqlen == expected.max_seqlen
            assert again.num_rows == expected.num_rows


@pytest.mark.parametrize("packed", [False, True])
def test_decisions_of_an_image_replay(packed):
    x, cu_seqlens, padded, mask = testing.ragged_batch([7, 0, 9], 3, exact=True)
    tokens, layout = (x, dict(cu_seqlens=cu_seqlens)) if packed else (padded, dict(token_mask=mask))
    out = sk.cluster_tokens(tokens, CONFIG, **layout)
    for i, image in enumerate(x.split([7, 0, 9]) if packed else padded.split(1)):
        mine = out[i]
        own = dict(cu_seqlens=mine.cu_seqlens) if packed else dict(token_mask=mask[i : i + 1])
        again = sk.cluster_tokens(image, CONFIG, **own, decisions=mine.decisions)
        assert torch.equal(again.masks, mine.masks) and torch.equal(again.labels, mine.labels)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
def test_images_keep_grid_and_gradient(grid):
    x = testing.planted_clusters(3, 12, 3, 3)[0].unflatten(1, grid).requires_grad_()
    out = sk.cluster_tokens(x, CONFIG)
    assert out[1].grid == grid and out[::2].grid == grid
    for chosen in (1, slice(0, 2), slice(None, None, -2)):
        some = torch.zeros(3, dtype=torch.bool)
        some[torch.arange(3)[chosen] if isinstance(chosen, int) else [*range(3)[chosen]]] = True
        (grad,) = torch.autograd.grad(out[chosen].masks.square().sum(), x, retain_graph=True)
        assert torch.equal(grad.flatten(1).abs().amax(1) > 0, some)


def test_consecutive_images_are_views():
    """A loop over the images copies nothing."""
    x, cu_seqlens, padded, _ = testing.ragged_batch([7, 3, 9], 3)
    for out in (sk.cluster_tokens(x, cu_seqlens=cu_seqlens), sk.cluster_tokens(padded)):
        for image in (out[1], out[1:3]):
            for name, value in tensors_of(image).items():
                source = tensors_of(out)[name]
                shared = value.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
                assert shared or name == "cu_seqlens", name


def test_images_of_packed_rows():
    x = testing.planted_clusters(3, 12, 3, 3)[0].requires_grad_()
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1] = False
    out = sk.cluster_tokens(x, CONFIG, token_mask=mask)
    packed = out.pack(sk.merge_tokens(x, out))
    assert len(packed) == 2 and packed[0] is packed.tokens, "it stays a pair"
    for i in range(3):
        image, same = packed.image(i), packed.image(i - 3)
        mine = packed.images == i
        assert image.cu_seqlens.tolist() == [0, int(mine.sum())] and image.max_seqlen == mine.sum()
        assert (image.images == 0).all() and image.num_rows == packed.num_rows
        for field in dataclasses.fields(packed):
            value = getattr(image, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(same, field.name))
                if field.name not in ("cu_seqlens", "images"):
                    assert torch.equal(value, getattr(packed, field.name)[mine]), field.name
        assert torch.equal(image.unpack(), packed.unpack()[i : i + 1])
    assert len(packed.image(1).rows) == 0
    (grad,) = torch.autograd.grad(packed.image(2).tokens.square().sum(), x)
    assert grad[2].abs().max() > 0 and (grad[:2] == 0).all()


def test_whatever_counts_as_an_index():
    out = sk.dpc_knn(testing.integer_tokens(3, 6, 2), 3)
    for index in (torch.tensor(1), torch.tensor([1]).numpy()[0]):
        assert torch.equal(out[index].labels, out.labels[1:2])


@pytest.mark.parametrize("index", [3, -4, 10**30])
def test_there_is_no_such_image(index):
    out = sk.dpc_knn(testing.integer_tokens(3, 6, 2), 3)
    packed = out.pack(torch.zeros(3, 3, 1))
    for call in (lambda: out[index], lambda: packed.image(index)):
        with pytest.raises(
            IndexError, match=rf"^index: expected a value from -3 to 2, got {index}$"
        ):
            call()
    with pytest.raises(IndexError, match=r"^index: expected none of 0 images, got 0$"):
        out[:0][0]


@pytest.mark.parametrize("index", [1.0, "0", None, (0, 1), [0]])
def test_an_index_is_an_int_or_a_slice(index):
    out = sk.dpc_knn(testing.integer_tokens(3, 6, 2), 3)
    with pytest.raises(TypeError, match=r"^index: expected an int or a slice, got "):
        out[index]
    packed = out.pack(torch.zeros(3, 3, 1))
    with pytest.raises(TypeError, match=r"^index: expected an int, got "):
        packed.image(index)


def test_fields_that_do_not_fit_are_named():
    out = sk.dpc_knn(testing.integer_tokens(3, 6, 2), 3)
    with pytest.raises(ValueError, match=r"^counts: expected shape \(3,\), got \(2,\)$"):
        dataclasses.replace(out, counts=out.counts[:2])[0]
