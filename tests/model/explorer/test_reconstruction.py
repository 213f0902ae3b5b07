import numpy as np
import pytest
import torch

from setok_kernels import ClusterConfig
from setokim import SetokConfig, SetokModel
from setokim.data.image_processing import to_image
from setokim.explorer.reconstruction import Reconstruction
from setokim.shapes_world.render import render
from setokim.shapes_world.scene import COLOURS, Object, Scene
from setokim.visualization.functions import DPCConfig

RED = Object("circle", "large", "red", "plain", 0.3, 0.3)
BLUE = Object("square", "medium", "blue", "plain", 0.7, 0.7, depth=1)


def tiny(**fields):
    """A random model of 6 x 6 patches."""
    dims = {"width": 16, "heads": 2, "token_dim": 24, "outline_dim": 12, "decoder_width": 16}
    decoder = {"decoder_layers": 1, "decoder_grid": (4, 4), "decoder_patch_size": 4}
    torch.manual_seed(0)
    config = SetokConfig(grid=(6, 6), patch_size=4, concept_dim=None, **dims, **decoder, **fields)
    return SetokModel(config).eval()


@pytest.fixture(scope="module")
def model():
    return SetokModel.from_pretrained()


@pytest.fixture(scope="module")
def features(model):
    image, _ = render(Scene((RED, BLUE), "grey"), 64)
    return model.encoder([image])


@pytest.fixture(scope="module")
def reconstruction(model):
    return Reconstruction(model)


@pytest.fixture(scope="module")
def visual(reconstruction, features):
    return reconstruction.tokenize(features, reconstruction.config)


def label_at(visual, obj):
    rows, columns = visual.grid
    return int(visual.labels[0, int(obj.y * rows) * columns + int(obj.x * columns)])


def seen(image, obj):
    """Number of pixels near the colour of an object, and their mean position (y, x)."""
    pixels = np.asarray(image, float)
    near = np.linalg.norm(pixels - COLOURS[obj.colour], axis=-1) < 90
    where = np.argwhere(near)
    return len(where), (where.mean(0) + 0.5) / pixels.shape[:2] if len(where) else None


def is_at(image, obj, y, x):
    """Whether the 5 x 5 pixels around a position have the colour of an object."""
    row, column = (int(place * 64) - 2 for place in (y, x))
    return seen(image.crop((column, row, column + 5, row + 5)), obj)[0] == 25


def test_untouched_tokens_give_the_reconstruction_of_the_model(model, reconstruction, visual):
    for size in (None, (48, 40)):
        image = reconstruction.image(visual, size=size)
        packed = visual.pack()
        with torch.inference_mode():
            pixels = model.detokenize(packed.tokens, packed.cu_seqlens, size=size)
        assert image.mode == "RGB" and image.size == (size or (64, 64))[::-1]
        assert image.tobytes() == to_image(pixels[0]).tobytes()
        again = reconstruction.image(visual, moved=(label_at(visual, RED), 0.0, 0.0), size=size)
        assert again.tobytes() == image.tobytes()


def test_both_objects_are_in_the_reconstruction(reconstruction, visual):
    image = reconstruction.image(visual)
    for obj in (RED, BLUE):
        pixels, centre = seen(image, obj)
        assert pixels > 100
        np.testing.assert_allclose(centre, (obj.y, obj.x), atol=0.02)


@pytest.mark.parametrize(("obj", "other"), [(RED, BLUE), (BLUE, RED)])
def test_the_object_of_a_removed_token_disappears(reconstruction, visual, obj, other):
    before = reconstruction.image(visual)
    after = reconstruction.image(visual, without=label_at(visual, obj))
    assert is_at(before, obj, obj.y, obj.x) and is_at(before, other, other.y, other.x)
    # The background has a hole there, in which a blurred spot of another colour appears.
    assert seen(after, obj)[0] < 0.1 * seen(before, obj)[0]
    assert is_at(after, other, other.y, other.x)


@pytest.mark.parametrize(
    ("obj", "down", "right"),
    [(RED, 0.4, 0.0), (RED, 0.0, 0.4), (BLUE, -0.45, 0.0), (BLUE, 0, -0.4)],
)
def test_a_moved_token_moves_its_object(reconstruction, visual, obj, down, right):
    image = reconstruction.image(visual, moved=(label_at(visual, obj), down, right))
    pixels, centre = seen(image, obj)
    assert pixels > 50
    np.testing.assert_allclose(centre, (obj.y + down, obj.x + right), atol=0.05)
    other = BLUE if obj is RED else RED
    np.testing.assert_allclose(seen(image, other)[1], (other.y, other.x), atol=0.03)


def test_one_token_is_moved_and_another_removed(reconstruction, visual):
    red, blue = (label_at(visual, obj) for obj in (RED, BLUE))
    image = reconstruction.image(visual, without=blue, moved=(red, 0.0, 0.4))
    assert seen(image, BLUE)[0] < 30
    assert is_at(image, RED, 0.3, 0.7)
    numbers = reconstruction.image(visual, np.int64(blue), (np.int64(red), 0, np.float64(0.5)))
    same = reconstruction.image(visual, blue, (red, 0.0, 0.5))
    assert numbers.tobytes() == same.tobytes()


def test_the_tokens_are_those_of_a_model_with_this_config(features):
    config = ClusterConfig(max_clusters=9, bandwidth=0.3, min_mass=1.0)
    for fields in ({"residual": "nearest", "position_weight": 0.4}, {"residual": "token"}):
        model = tiny(**fields, cluster={"k": 3}, learnable=("bandwidth",))
        same = tiny(**fields, cluster=config.to_dict())
        same.load_state_dict({k: v for k, v in model.state_dict().items() if "bandwidth" not in k})
        image, _ = render(Scene((RED, BLUE), "grey"), 24)
        with torch.inference_mode():
            expected = same.tokenize([image])
            found = Reconstruction(model).tokenize(model.encoder([image]), config)
        assert found.tokens.shape[1] == 10
        for name in ("tokens", "occupied", "masks", "labels"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_the_model_is_not_changed(model, reconstruction, features, visual):
    with torch.inference_mode():
        own = model.tokenize_features(features)
    assert torch.equal(own.tokens, visual.tokens) and torch.equal(own.labels, visual.labels)
    before = visual.tokens.clone()
    grouping = model.clustering
    reconstruction.tokenize(features, ClusterConfig(bandwidth=0.1))
    reconstruction.image(visual, without=0, moved=(1, 0.1, 0.1))
    assert model.clustering is grouping
    assert torch.equal(visual.tokens, before) and visual.occupied.sum() == own.occupied.sum()


def test_the_own_config_has_the_trained_numbers():
    model = tiny(learnable=("bandwidth", "offset"), cluster={"bandwidth": 0.7, "k": 3})
    with torch.no_grad():
        model.clustering.log_bandwidth.fill_(-1.0)
    config = Reconstruction(model).config
    assert config.bandwidth == pytest.approx(np.exp(-1)) and config.offset == 0.5
    assert config.k == 3 and all(not torch.is_tensor(v) for v in vars(config).values())


def test_the_backend_is_that_of_the_model(features):
    model = tiny()
    model.clustering.backend = "abacus"
    with pytest.raises(ValueError, match=r"backend: expected .*, got 'abacus'"):
        Reconstruction(model).tokenize(
            torch.zeros(1, 6, 6, model.encoder.feature_dim), ClusterConfig()
        )


def test_an_image_of_no_token_is_finite(reconstruction, features):
    visual = reconstruction.tokenize(features, ClusterConfig(max_clusters=1, bandwidth=1e6))
    assert visual.occupied.sum() == 1
    image = reconstruction.image(visual, without=0)
    assert image.size == (64, 64)
    assert image.tobytes() == reconstruction.image(visual, without=0).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"without": 5}, r"without: expected the label of a token \(0, 1, 2\), got 5"),
        ({"without": -1}, "without: expected at least 0, got -1"),
        ({"without": 1.0}, "without: expected an int, got 1.0"),
        ({"without": True}, "without: expected an int, got True"),
        ({"moved": (3, 0, 0)}, r"moved: expected the label of a token \(0, 1, 2\), got 3"),
        ({"moved": (1, float("nan"), 0)}, "moved: expected a finite number, got nan"),
        ({"moved": (1, 0, "x")}, "moved: expected a real number, got 'x'"),
        ({"size": (0, 8)}, "size: expected at least 1, got 0"),
        ({"size": (8, 8.5)}, "size: expected an int, got 8.5"),
    ],
)
def test_arguments_that_do_not_fit(reconstruction, visual, arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        reconstruction.image(visual, **arguments)


def test_a_removed_label_may_not_be_moved(reconstruction, visual):
    with pytest.raises(ValueError, match="moved: expected another label than without=1, got 1"):
        reconstruction.image(visual, without=1, moved=(1, 0.1, 0.1))


def test_features_and_options_that_do_not_fit(model, reconstruction, features, visual):
    for wrong in (features[0], features.repeat(2, 1, 1, 1), features[..., :3]):
        with pytest.raises(ValueError, match=r"features: expected shape \(1, H, W, \d+\), got \("):
            reconstruction.tokenize(wrong, ClusterConfig())
    with pytest.raises(TypeError, match="config: expected a ClusterConfig, got DPCConfig"):
        reconstruction.tokenize(features, DPCConfig())
    two = visual.select(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="visual: expected tokens of 1 image, got 2"):
        reconstruction.image(two)


def test_models_that_do_not_fit():
    with pytest.raises(ValueError, match=r"model: expected tokens that are clusters, .*: grid"):
        Reconstruction(tiny(tokens="grid", token_grid=(2, 2)))
    model = tiny()
    without = SetokModel(model.config, with_encoder=False).eval()
    with pytest.raises(ValueError, match="model: expected a model with its encoder, got one"):
        Reconstruction(without)
    with pytest.raises(ValueError, match="model: expected evaluation mode, got training mode"):
        Reconstruction(model.train())
