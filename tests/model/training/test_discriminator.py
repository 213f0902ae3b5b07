import pytest
import torch
from torch import nn

from setokim.training.discriminator import PatchDiscriminator


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_network_matches_the_paper():
    model = PatchDiscriminator()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == [
        (3, 64, 2),
        (64, 128, 2),
        (128, 256, 2),
        (256, 512, 1),
        (512, 1, 1),
    ]
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert [m.num_channels // m.num_groups for m in norms] == [16, 16, 16]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert not list(model.buffers())


def test_a_logit_sees_70_by_70_pixels():
    model = PatchDiscriminator(width=4).double()
    # A norm depends on the whole image.
    model.layers = nn.Sequential(*(m for m in model.layers if not isinstance(m, nn.GroupNorm)))
    image = images(1, 3, 128, 128).double().requires_grad_()
    logits = model(image)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows, columns = image.grad[0].abs().sum(0).nonzero().T
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == 70


def test_logits_do_not_depend_on_the_batch():
    model = PatchDiscriminator(width=8, layers=2)
    batch = images(3, 3, 20, 13)
    together = model(batch)
    assert together.shape == (3, 1, 3, 1)
    torch.testing.assert_close(model(batch[1:2]), together[1:2])
    assert torch.equal(model.eval()(batch), together)


def test_images_are_centred():
    model = PatchDiscriminator(width=8, layers=1)
    # 0.5 is 0 for the first convolution, whose initial bias is 0.
    assert (model(torch.full((1, 3, 8, 8), 0.5)) == 0).all()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_minimum_image_size(layers):
    model = PatchDiscriminator(width=2, layers=layers)
    size = model.min_size
    assert size == {1: 6, 2: 12, 3: 24}[layers]
    logits = model(images(2, 3, size, size))
    assert logits.shape == (2, 1, 1, 1) and logits.isfinite().all()
    message = f"image: expected at least {size} x {size} pixels, got {size} x {size - 1}"
    with pytest.raises(ValueError, match=message):
        model(images(2, 3, size, size - 1))


def test_errors():
    for options, message in [
        ({"channels": 0}, "channels: expected at least 1, got 0"),
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            PatchDiscriminator(**options)
    with pytest.raises(ValueError, match=r"expected shape \(B, 3, H, W\), got \(1, 1, 32, 32\)"):
        PatchDiscriminator(width=2)(images(1, 1, 32, 32))
