"""`setokim.plot`: figures for notebooks."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import setok_kernels as sk
import setokim
from setok_kernels.extras import MissingExtraError

matplotlib = pytest.importorskip("matplotlib")

GRID = (4, 5)
ALL = ("photograph", "clusters", "scope", "density", "delta", "score", "sizes")


@pytest.fixture(scope="module")
def tokens():
    """Two images, (2, 4, 5, 6)."""
    return torch.randn(2, *GRID, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def shown(axes):
    """(H, W, 3) or (rows, columns) values of the image in a panel."""
    return np.asarray(axes.images[0].get_array())


def test_a_figure_without_pyplot(tokens, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    figure = setokim.plot(photo, sk.cluster_tokens(tokens))
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure._repr_png_().startswith(b"\x89PNG\r\n\x1a\n"), "what a notebook shows"
    assert len(figure.axes) == 2 and titles(figure)[0] == "photograph"


def test_pyplot_keeps_no_figure(tokens, photo):
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_fignums()
    setokim.plot(photo, sk.cluster_tokens(tokens))
    assert plt.get_fignums() == before


def test_all_panels_in_the_order_given(tokens, photo):
    out = sk.cluster_tokens(tokens, sk.ClusterConfig(bandwidth=0.1))
    count = int(out.counts[0])
    assert count >= 4
    residual = float(out.masks[0, count].mean())
    found = titles(setokim.plot(photo, out, views=ALL))
    assert found[:2] == ["photograph", f"{count} clusters, residual {residual:.1%}"]
    assert [title.partition(" left after ")[2] for title in found[2:6]] == [
        f"{-(-count * i // 4)} step{'s' * (-(-count * i // 4) > 1)}" for i in (1, 2, 3, 4)
    ]
    assert found[5].startswith(f"{residual:.1%} left")
    assert found[6:] == [
        "density (Eq. 1)",
        "seed distance (Eq. 2)",
        "score",
        "patches of each cluster",
    ]
    assert titles(setokim.plot(photo, out, views=ALL[::-1]))[-1] == "photograph"
    assert titles(setokim.plot(photo, out, views="score")) == ["score"]


@pytest.mark.parametrize("index", [0, 1, -1])
def test_the_image_of_the_batch_is_the_one_chosen(tokens, photo, index):
    out = sk.cluster_tokens(tokens)
    figure = setokim.plot(photo, out, index=index, views=("density", "sizes"))
    density, sizes, bar = figure.axes
    assert np.allclose(shown(density), out.density[index].reshape(GRID))
    heights = [patch.get_height() for patch in sizes.patches]
    count = int(out.counts[index])
    expected = out.labels[index].bincount(minlength=count + 1).tolist()
    assert heights == (expected if expected[count] else expected[:count])
    # The values stand beside the colours.
    low, high = (float(value) for value in out.density[index].aminmax())
    assert bar.get_ylim() == pytest.approx((low, high))


def test_the_colours_are_those_of_the_maps(tokens, photo):
    from setokim.visualization.patch_maps import draw_values

    out = sk.cluster_tokens(tokens)
    figure = setokim.plot(photo, out, views="density")
    drawn = figure.axes[0].images[0]
    values = out.density[0].reshape(GRID).numpy()
    ours = np.asarray(draw_values(values, GRID[::-1])).astype(float) / 255
    assert np.abs(drawn.to_rgba(drawn.get_array())[..., :3] - ours).max() < 0.02


def test_a_scope_after_chosen_steps(tokens, photo):
    out = sk.cluster_tokens(tokens, sk.ClusterConfig(bandwidth=0.1))
    figure = setokim.plot(photo, out, views=("scope",), steps=(0, 1))
    left = 1 - float(out.masks[0, 0].mean())
    assert titles(figure) == ["100.0% left after 0 steps", f"{left:.1%} left after 1 step"]
    before, after = (shown(axes).mean() for axes in figure.axes)
    assert after < before


def test_hard_clusters(tokens, photo):
    peaks = sk.dpc_knn(tokens, 3)
    figure = setokim.plot(photo, peaks, views=("clusters", "density", "delta", "score", "sizes"))
    assert titles(figure)[0] == "3 clusters"
    assert np.allclose(shown(figure.axes[1]), peaks.density[0].reshape(GRID))
    greedy = sk.threshold_greedy(tokens, 0.5)
    figure = setokim.plot(photo, greedy, index=1, views=("clusters", "sizes"))
    heights = [patch.get_height() for patch in figure.axes[1].patches]
    assert heights == greedy.labels[1].bincount().tolist()


def test_tokens_in_no_cluster_are_the_residual(tokens, photo):
    spoiled = tokens[:1].clone()
    spoiled[0, 0, 0] = torch.nan
    for out in (sk.cluster_tokens(spoiled), sk.dpc_knn(spoiled, 3)):
        figure = setokim.plot(photo, out, views=("clusters", "sizes", "density"))
        assert "residual" in titles(figure)[0]
        assert figure.axes[1].get_legend_handles_labels()[1] == ["residual"]
        assert figure._repr_png_()


def test_a_result_without_a_grid(tokens, photo):
    flat = sk.cluster_tokens(tokens.flatten(1, 2))
    figure = setokim.plot(photo, flat, views="density", grid=np.array(GRID))
    assert shown(figure.axes[0]).shape == GRID
    again = setokim.plot(photo, sk.cluster_tokens(tokens), views="density", grid=GRID)
    assert np.allclose(shown(again.axes[0]), shown(figure.axes[0]))


def test_gradients_dtypes_and_forms_of_the_image(tokens, photo, tmp_path):
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
    photo.save(tmp_path / "photo.png")
    x = tokens.double().requires_grad_()
    out = sk.cluster_tokens(x)
    half = dataclasses.replace(
        out, **{name: getattr(out, name).bfloat16() for name in ("masks", "density")}
    )
    forms = (
        photo,
        np.asarray(photo),
        pixels,
        pixels.double().requires_grad_(),
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
    )
    drawn = []
    for image in forms:
        figure = setokim.plot(image, out, views=("photograph", "density"))
        drawn.append(shown(figure.axes[0]))
    assert all(np.array_equal(drawn[0], one) for one in drawn[1:])
    assert out.masks.requires_grad and torch.isfinite(half.masks).all()
    assert titles(setokim.plot(photo.convert("L"), half))[0] == "photograph"


def test_no_clusters(photo):
    nothing = sk.cluster_tokens(torch.full((1, *GRID, 6), torch.nan))
    assert int(nothing.counts[0]) == 0
    figure = setokim.plot(photo, nothing, views=ALL)
    found = titles(figure)
    assert found[1:3] == ["0 clusters, residual 100.0%", "100.0% left after 0 steps"]
    assert figure._repr_png_()


@pytest.mark.parametrize("size", [(2000, 10), (10, 2000), (1, 1)])
def test_images_of_any_shape(tokens, size):
    photo = Image.new("RGB", size, "white")
    figure = setokim.plot(photo, sk.cluster_tokens(tokens), views=ALL)
    assert figure._repr_png_()
    width, height = figure.get_size_inches()
    assert width < 24 and height < 20


def refused(tokens, photo, **changed):
    arguments = {"image": photo, "clusters": sk.cluster_tokens(tokens)} | changed
    setokim.plot(arguments.pop("image"), arguments.pop("clusters"), **arguments)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (3, TypeError, "image: expected a file, a PIL image, an array or a tensor, got int"),
        (np.zeros((4, 5), np.uint8), ValueError, r"array \(H, W, 3\) of uint8, got shape \(4, 5\)"),
        (np.zeros((4, 5, 3)), ValueError, r"of uint8, got shape \(4, 5, 3\), float64"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"got shape \(0, 5, 3\)"),
        (torch.zeros(4, 5, 3), ValueError, r"tensor \(3, H, W\), got shape \(4, 5, 3\)"),
        (torch.zeros(3, 4, 5).byte(), ValueError, "expected a floating-point tensor"),
        (torch.zeros(3, 0, 5), ValueError, r"tensor \(3, H, W\), got shape \(3, 0, 5\)"),
        (torch.full((3, 4, 5), 2.0), ValueError, r"image: expected values in \[0, 1\], got 2 to 2"),
        (torch.full((3, 4, 5), torch.nan), ValueError, "got nan to nan"),
        ("missing.png", setokim.UnreadableImageError, "cannot read missing.png"),
    ],
)
def test_images_that_do_not_fit(tokens, photo, image, error, message):
    with pytest.raises(error, match=message):
        refused(tokens, photo, image=image)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"clusters": torch.zeros(2)}, TypeError, "clusters: expected a result of .*, got Tensor"),
        ({"index": 2}, IndexError, "index: expected a value from -2 to 1, got 2"),
        ({"index": 0.5}, TypeError, "index: expected an int, got 0.5"),
        ({"grid": (5, 4)}, ValueError, r"grid: expected \(4, 5\) of the clusters, got \(5, 4\)"),
        ({"grid": 20}, ValueError, r"grid: expected .*, got 20"),
        ({"views": ()}, ValueError, r"views: expected some of photograph, .*, got \(\)"),
        ({"views": ("maps",)}, ValueError, r"for Clusters, got \('maps',\)"),
        ({"views": None}, ValueError, r"views: expected some of .*, got None"),
        ({"views": "scope", "steps": (1, 99)}, ValueError, "steps: expected numbers from 0 to"),
        ({"views": "scope", "steps": (-1,)}, ValueError, r"steps: .*, got \(-1,\)"),
        ({"views": "scope", "steps": (0.5,)}, ValueError, r"steps: .*, got \(0.5,\)"),
        ({"views": "scope", "steps": ()}, ValueError, r"steps: .*, got \(\)"),
        ({"views": "scope", "steps": 1}, ValueError, "steps: .*, got 1"),
        ({"steps": (1,)}, ValueError, "steps: expected None without the view 'scope'"),
    ],
)
def test_arguments_that_do_not_fit(tokens, photo, changed, error, message):
    with pytest.raises(error, match=message):
        refused(tokens, photo, **changed)


def test_results_that_do_not_fit(tokens, photo):
    flat = sk.cluster_tokens(tokens.flatten(1, 2))
    with pytest.raises(ValueError, match=r"grid: expected rows and columns of the 20 tokens, got"):
        refused(tokens, photo, clusters=flat)
    for grid in ((3, 5), (-4, -5), (20,), (4.0, 5.0), "ab"):
        with pytest.raises(ValueError, match="grid: expected rows and columns of 20 tokens, got"):
            refused(tokens, photo, clusters=flat, grid=grid)
    video = sk.cluster_tokens(tokens[None])
    with pytest.raises(ValueError, match=r"got \(2, 4, 5\) of a video"):
        refused(tokens, photo, clusters=video)
    offsets = torch.tensor([0, 20, 40], dtype=torch.int32)
    packed = sk.cluster_tokens(tokens.reshape(40, 6), cu_seqlens=offsets)
    with pytest.raises(ValueError, match=r"clusters: expected .*, got a packed result"):
        refused(tokens, photo, clusters=packed, grid=GRID)


@pytest.mark.parametrize("view", ["scope", "density"])
def test_views_that_a_result_does_not_have(tokens, photo, view):
    greedy = sk.threshold_greedy(tokens, 0.5)
    with pytest.raises(ValueError, match=f"clusters, sizes for HardClusters, got '{view}'"):
        refused(tokens, photo, clusters=greedy, views=view)
    if view == "scope":
        with pytest.raises(ValueError, match="density, delta, score, sizes for DensityPeaks"):
            refused(tokens, photo, clusters=sk.dpc_knn(tokens, 3), views=view)


def test_without_matplotlib(tokens, photo, monkeypatch):
    monkeypatch.delitem(sys.modules, "setokim.visualization.notebook_figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'needs matplotlib: pip install .*\[report\]"'):
        refused(tokens, photo)
