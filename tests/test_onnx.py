"""The reference as an ONNX graph: the same labels in onnxruntime, for any batch."""

import numpy as np
import pytest
import torch

import setok_kernels as sk
from setok_kernels import testing

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


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


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_onnxruntime_finds_the_same_labels(preset, tmp_path):
    config = {
        "default": sk.ClusterConfig(max_clusters=6),
        "paper": sk.ClusterConfig.paper(max_clusters=5, kernel="laplacian"),
    }[preset]
    model = Tokenizer(config).eval()
    # Small integers: ties are ties in any order of summation.
    cases = [testing.integer_tokens(*shape) for shape in ((3, 40, 5), (1, 33, 5), (6, 60, 5))]
    session = export(model, cases[0], tmp_path / "tokenizer.onnx")
    for x in cases:
        with torch.no_grad():
            expected = model(x)
        for got, want in zip(run(session, x), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        assert (run(session, x)[0] == expected[0].numpy()).all()


@pytest.mark.slow
def test_onnxruntime_on_photographs(tmp_path):
    data = pytest.importorskip("skimage.data")
    image = pytest.importorskip("PIL.Image")
    from setokim.encoders import build_encoder

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
    # Every step is in the graph: fewer of them export sooner.
    model = Tokenizer(sk.ClusterConfig(max_clusters=20)).eval()
    session = export(model, x[:2], tmp_path / "tokenizer.onnx")
    for batch in (x[:1], x):
        with torch.no_grad():
            labels, counts, _ = model(batch)
        got = run(session, batch)
        assert (got[0] == labels.numpy()).all() and (got[1] == counts.numpy()).all()
