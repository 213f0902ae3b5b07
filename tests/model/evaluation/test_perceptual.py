import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from setokim.evaluation.perceptual import PerceptualLoss

CHANNELS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
NUMBERS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class FakeEncoder(nn.Module):
    """Two features per block of 2 × 2 pixels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]]))
        self.requires_grad_(False)

    def normalise(self, picture):
        return F.interpolate(2 * picture - 1, (4, 4), mode="bilinear")

    def features(self, pixels):
        return torch.einsum("fc,bchw->bhwf", self.weight, F.avg_pool2d(pixels, 2))


@pytest.fixture(scope="module")
def vgg():
    """Return weights that keep the size of the activations."""
    generator = torch.Generator().manual_seed(0)
    tensors, before = {}, 3
    for n, after in zip(NUMBERS, CHANNELS, strict=True):
        weight = torch.randn(after, before, 3, 3, generator=generator)
        tensors[f"features.{n}.weight"] = weight * (2 / (9 * before)) ** 0.5
        tensors[f"features.{n}.bias"] = 0.1 * torch.randn(after, generator=generator)
        before = after
    for i, channels in enumerate([64, 128, 256, 512, 512]):
        tensors[f"lin{i}.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def vgg_file(vgg, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file(vgg, path)
    return path


@pytest.fixture(params=["encoder", "lpips", "pyramid"])
def loss(request):
    match request.param:
        case "encoder":
            return PerceptualLoss.from_encoder(FakeEncoder())
        case "lpips":
            return PerceptualLoss.lpips(request.getfixturevalue("vgg_file"))
        case "pyramid":
            return PerceptualLoss.pyramid()


def test_common_properties_of_all_kinds(loss):
    picture, target = pictures(2, 3, 16, 20), pictures(2, 3, 16, 20, seed=1)
    assert loss(picture, picture).item() == 0
    picture.requires_grad_()
    target.requires_grad_()
    value = loss.train()(picture, target)
    assert value.shape == () and value.dtype == torch.float32 and value > 0
    value.backward()
    assert target.grad is None and picture.grad.isfinite().all() and picture.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.parameters())
    assert loss.training and not loss.network.training
    with pytest.raises(ValueError, match=r"target: expected the shape of the image"):
        loss(picture, target[..., :-1])


def test_gradients_of_flat_images(loss):
    grey = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    loss(grey, grey.detach()).backward()
    assert (grey.grad == 0).all()
    loss(grey, pictures(1, 3, 16, 16)).backward()
    assert grey.grad.isfinite().all()


def test_encoder_distance_is_that_of_directions():
    picture, target = pictures(2, 3, 8, 8), pictures(2, 3, 8, 8, seed=1)
    encoder = FakeEncoder()
    seen, wanted = (encoder.features(encoder.normalise(x)) for x in (picture, target))
    expected = (2 - 2 * F.cosine_similarity(seen, wanted, dim=-1)).mean()
    found = PerceptualLoss.from_encoder(encoder)(picture, target)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_encoder_errors():
    with pytest.raises(
        TypeError, match="encoder: expected a module with a method normalise, got Linear"
    ):
        PerceptualLoss.from_encoder(nn.Linear(1, 1))
    trainable = FakeEncoder().requires_grad_(True)
    with pytest.raises(ValueError, match=r"network: .* got 1 parameters .*encoder\.weight"):
        PerceptualLoss.from_encoder(trainable)


@pytest.mark.parametrize(
    ("size", "seed"), [((32, 16), 0), ((16, 16), 1), ((33, 47), 2), ((24, 40), 3), ((64, 64), 4)]
)
def test_lpips_is_the_definition(vgg, vgg_file, size, seed):
    def stages(x):
        x = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(3, 1, 1)
        found = []
        for numbers in ([0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]):
            x = F.max_pool2d(x, 2, 2) if found else x
            for n in numbers:
                weight, bias = vgg[f"features.{n}.weight"], vgg[f"features.{n}.bias"]
                x = F.conv2d(x, weight, bias, padding=1).relu()
            found.append(x)
        return found

    picture, target = (pictures(2, 3, *size, seed=2 * seed + i) for i in range(2))
    expected = torch.zeros(2)
    for i, (a, b) in enumerate(zip(stages(picture), stages(target), strict=True)):
        a, b = a / (a.norm(dim=1, keepdim=True) + 1e-10), b / (b.norm(dim=1, keepdim=True) + 1e-10)
        distance = F.conv2d((a - b) ** 2, vgg[f"lin{i}.weight"])  # (B, 1, h, w)
        expected += distance.mean((1, 2, 3))
    found = PerceptualLoss.lpips(vgg_file)(picture, target)
    torch.testing.assert_close(found, expected.mean(), atol=1e-6, rtol=1e-4)


def test_lpips_samples_no_random_numbers(vgg_file):
    before = torch.get_rng_state()
    PerceptualLoss.lpips(vgg_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_lpips_errors(vgg, tmp_path):
    path = tmp_path / "file.safetensors"
    with pytest.raises(ValueError, match=r"path: expected a safetensors file, got .*file\.safe"):
        PerceptualLoss.lpips(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"path: expected a safetensors file, got .*file\.safe"):
        PerceptualLoss.lpips(path)
    # Names are looked at before shapes, so that small tensors do.
    small = {name: torch.zeros(1) for name in vgg}
    save_file({n: t for n, t in small.items() if n != "lin3.weight"}, path)
    with pytest.raises(ValueError, match=r"31 tensors .* 1 are missing, such as lin3\.weight"):
        PerceptualLoss.lpips(path)
    save_file(small | {"features.1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 are unknown, such as features\.1\.weight"):
        PerceptualLoss.lpips(path)
    save_file(small, path)
    with pytest.raises(
        ValueError, match=r"features\.0\.weight of shape \(64, 3, 3, 3\), got \(1,\)"
    ):
        PerceptualLoss.lpips(path)
    save_file(vgg | {"lin1.weight": -vgg["lin1.weight"]}, path)
    with pytest.raises(ValueError, match=r"path: expected no negative number in lin1\.weight"):
        PerceptualLoss.lpips(path)


def test_lpips_smallest_image(vgg_file):
    loss = PerceptualLoss.lpips(vgg_file)
    small = pictures(1, 3, 16, 15)
    with pytest.raises(ValueError, match="image: expected at least 16 x 16 pixels, got 16 x 15"):
        loss(small, small)


def test_pyramid_of_a_plain_difference_by_hand():
    target = pictures(2, 3, 8, 12)
    picture = target + torch.tensor([0.1, 0.0, 0.0])[:, None, None]
    # Lightness, red-green and yellow-blue at three scales; no edge has changed.
    expected = 3 * (0.0299**2 + 0.05**2 + 0.025**2)
    assert PerceptualLoss.pyramid()(picture, target).item() == pytest.approx(expected, rel=1e-4)


def test_pyramid_is_the_definition():
    picture, target = pictures(2, 3, 8, 9), pictures(2, 3, 8, 9, seed=1)
    expected = 0.0
    for difference in (picture - target).double().numpy():
        red, green, blue = difference
        lightness = 0.299 * red + 0.587 * green + 0.114 * blue
        planes = [lightness, (red - green) / 2, (red + green) / 4 - blue / 2]
        for _ in range(3):
            padded = np.pad(planes[0], 1, mode="edge")
            dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
            dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
            expected += sum((plane**2).mean() for plane in [*planes, dx, dy]) / 2
            rows, columns = (n // 2 for n in planes[0].shape)
            planes = [
                p[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3))
                for p in planes
            ]
    found = PerceptualLoss.pyramid()(picture, target).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_pyramid_smallest_image():
    small = pictures(1, 3, 3, 4)
    with pytest.raises(ValueError, match="image: expected at least 4 x 4 pixels, got 3 x 4"):
        PerceptualLoss.pyramid()(small, small)
