"""The reference as an ONNX graph: the same labels in onnxruntime, for any batch."""

import numpy as np
import pytest
import torch

import setok_kernels as sk
from setok_kernels import layout, selection, testing

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# An export is a minute of traced Python.
pytestmark = pytest.mark.no_cover


class Tokenizer(torch.nn.Module):
    """Labels, counts and merged tokens, as one would serve them."""

    def __init__(self, config):
        super().__init__()
        self.cluster = sk.TokenClustering(config, backend="reference")

    def forward(self, x):
        out = self.cluster(x)
        return out.labels, out.counts, sk.merge_tokens(x, out, backend="reference")


def export(model, x, path):
    dynamic = {"x": {0: torch.export.Dim("images", min=1), 1: torch.export.Dim("tokens", min=9)}}
    torch.onnx.export(
        model, (x,), dynamo=True, dynamic_shapes=dynamic, verbose=False, optimize=False
    ).save(path)
    return onnxruntime.InferenceSession(path)


def run(session, x):
    (name,) = (i.name for i in session.get_inputs())
    return session.run(None, {name: x.numpy()})


# Every step of the selection is in the graph: fewer of them export sooner.
FEW = dict(k=3, max_clusters=3)


def assert_the_same_labels(model, session, channels):
    # Small integers: ties are ties in any order of summation.
    for images, tokens in ((3, 40), (1, 33), (6, 60)):
        x = testing.integer_tokens(images, tokens, channels)
        with torch.no_grad():
            expected = model(x)
        for got, want in zip(run(session, x), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        assert (run(session, x)[0] == expected[0].numpy()).all()


@pytest.mark.slow
def test_onnxruntime_finds_the_same_labels_by_the_paper(tmp_path):
    model = Tokenizer(sk.ClusterConfig.paper(**FEW, kernel="laplacian")).eval()
    session = export(model, testing.integer_tokens(3, 40, 5), tmp_path / "tokenizer.onnx")
    assert_the_same_labels(model, session, 5)


@pytest.mark.slow
def test_onnxruntime_finds_the_same_labels(tmp_path):
    """Of integers, whose ties are ties, and of photographs; one export serves both."""
    model = Tokenizer(sk.ClusterConfig(**FEW)).eval()
    session = export(model, testing.integer_tokens(3, 40, 21), tmp_path / "tokenizer.onnx")
    assert_the_same_labels(model, session, 21)
    data = pytest.importorskip("skimage.data")
    image = pytest.importorskip("PIL.Image")
    from setokim.tokenizer.encoders import build_encoder

    names = (
        "astronaut",
        "chelsea",
        "coffee",
        "rocket",
        "camera",
        "clock",
        "hubble_deep_field",
        "retina",
    )
    pictures = [image.fromarray(getattr(data, name)()).convert("RGB") for name in names]
    encoder = build_encoder("patch-statistics")
    x = torch.cat([encoder([picture]).flatten(1, -2) for picture in pictures])
    for batch in (x[:1], x):
        with torch.no_grad():
            labels, counts, _ = model(batch)
        got = run(session, batch)
        assert (got[0] == labels.numpy()).all() and (got[1] == counts.numpy()).all()


class Peaks(torch.nn.Module):
    """A hard clustering, ranked by token; those of packed images below are ranked by score."""

    def forward(self, x):
        options = dict(threshold=0.2, order="index", cap="eccentricity")
        out = sk.dpc_knn(x, 7, k=3, **options, backend="reference")
        merged = sk.merge_tokens(x, out, backend="reference")
        return out.labels, out.centres, out.counts, out.score, merged, out.occupied()


@pytest.mark.slow
def test_onnxruntime_finds_the_same_centres(tmp_path):
    """Scores of duplicates tie: the lowest token comes first there too."""
    shapes = ((3, 40), (1, 33), (6, 60))
    cases = [testing.duplicate_tokens(*shape, 5, distinct=9) for shape in shapes]
    model = Peaks()
    session = export(model, cases[0], tmp_path / "peaks.onnx")
    for x in cases:
        for got, want in zip(run(session, x), model(x), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
            assert want.is_floating_point() or (got == want.numpy()).all()


class PackedImages(torch.nn.Module):
    """A clustering of packed tokens, and its merge there and back."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster = cluster

    def forward(self, x, cu_seqlens):
        out = self.cluster(x, cu_seqlens=cu_seqlens, max_seqlen=8, backend="reference")
        merged = sk.merge_tokens(x, out, backend="reference")
        spread = sk.unmerge_tokens(merged, out, backend="reference")
        return out.labels, out.counts, out.centres, out.sizes(), merged, spread


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cluster_tokens", "dpc_knn", "threshold_greedy"])
def test_onnxruntime_reads_packed_images(name, tmp_path):
    option = {"cluster_tokens": sk.ClusterConfig(**FEW), "dpc_knn": 4}.get(name, 0.5)
    model = PackedImages(lambda x, **images: getattr(sk, name)(x, option, **images))
    lengths = ([8, 7], [3, 0, 5, 6], [8])
    cases = [testing.ragged_batch(tokens, 5, exact=True)[:2] for tokens in lengths]
    dynamic = {
        "x": {0: torch.export.Dim("total", min=2)},
        "cu_seqlens": {0: torch.export.Dim("offsets", min=2)},
    }
    path = tmp_path / "packed.onnx"
    torch.onnx.export(
        model, cases[0], dynamo=True, dynamic_shapes=dynamic, verbose=False, optimize=False
    ).save(path)
    session = onnxruntime.InferenceSession(path)
    names = [i.name for i in session.get_inputs()]
    for case in cases:
        found = session.run(None, dict(zip(names, (t.numpy() for t in case), strict=True)))
        for got, want in zip(found, model(*case), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_exported_orders_and_locates_alike(monkeypatch):
    """Ties, infinities, and images without tokens."""
    values = testing.integer_tokens(3, 50, 1)[..., 0]
    values[0, :9], values[1] = -torch.inf, 0.5
    offsets = torch.tensor([0, 0, 7, 7, 20, 20], dtype=torch.int32)
    order, positions = selection.descending(values), layout.token_positions(offsets, 20)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(selection.descending(values), order)
    for got, want in zip(layout.token_positions(offsets, 20), positions, strict=True):
        assert torch.equal(got, want)
