"""Metrics of reconstructed images, against scikit-image, torchmetrics' formula and by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from helpers.networks import FakeInception, inception_file, lpips_file
from helpers.published import PUBLISHED, write_parquet
from helpers.tiny_setokim import build, picture
from setok_cli.main import main
from setokim.data.image_processing import to_image
from setokim.evaluation.frechet import FeatureStatistics, frechet_distance
from setokim.evaluation.image_networks import ImageNetworks
from setokim.evaluation.perceptual import PerceptualLoss
from setokim.evaluation.reconstruction import _centre, open_images, reconstruction_metrics


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images" / "inside"
    folder.mkdir(parents=True)
    for seed in range(20):
        # Wider or higher than the square reconstructions of 32 x 32.
        size = (40 + 3 * seed, 48)
        picture(seed).resize(size, Image.Resampling.BICUBIC).save(folder / f"{seed:02d}.png")
    return folder.parent


def pairs_of(setok, folder):
    """Reconstruction and reference of each image, (32, 32, 3) uint8, and its number of tokens."""
    for path in sorted(folder.rglob("*.png")):
        image = Image.open(path)
        side = min(image.size)
        box = ((image.width - side) // 2, (image.height - side) // 2)
        image = image.crop((*box, box[0] + side, box[1] + side))
        with torch.no_grad():
            visual, pixels = setok(setok.preprocess([image]))
        reference = image.resize((32, 32), Image.Resampling.BICUBIC)
        yield np.array(to_image(pixels[0])), np.array(reference), int(visual.occupied.sum())


def test_metrics_equal_those_of_scikit_image(built, images, tmp_path):
    setok = built[0].setok
    lpips = lpips_file(tmp_path / "lpips.safetensors")
    networks = ImageNetworks.load(inception=inception_file(tmp_path / "i.pt"), lpips=lpips)
    found = reconstruction_metrics(setok, open_images(images), 20, networks=networks)
    pairs = list(pairs_of(setok, images))
    psnr = [peak_signal_noise_ratio(b, a, data_range=255) for a, b, _ in pairs]
    ssim = [
        structural_similarity(
            a,
            b,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for a, b, _ in pairs
    ]
    # A reconstruction may differ by a level: here all images are one batch of another size.
    assert found["psnr"] == pytest.approx(np.mean(psnr), abs=2e-3)
    assert found["ssim"] == pytest.approx(np.mean(ssim), abs=2e-3)
    tensors = [[torch.from_numpy(one).permute(2, 0, 1)[None] for one in pair[:2]] for pair in pairs]
    loss = PerceptualLoss.lpips(lpips)
    distances = [float(loss(a / 255, b / 255)) for a, b in tensors]
    assert found["lpips"] == pytest.approx(np.mean(distances), rel=1e-2)
    sides = [FeatureStatistics(6), FeatureStatistics(6)]
    for pair in tensors:
        for side, one in zip(sides, pair, strict=True):
            side.add(FakeInception()(one, return_features=True))
    assert found["rfid"] == pytest.approx(frechet_distance(*sides), rel=1e-2)
    counts = np.array([count for *_, count in pairs])
    assert found["tokens"] == counts.mean() and found["tokens_std"] == pytest.approx(counts.std())
    assert (found["tokens_min"], found["tokens_max"]) == (counts.min(), counts.max())
    assert found["samples"] == 20 and found["broken"] == 0 and not found.left_out
    assert found.details["psnr"].samples == 20 and found.details["rfid"].reason


class Mirror:
    """Tokenizer whose reconstruction is the reference, but for those of `shifted`."""

    def __init__(self, setok, shift):
        self.config, self._setok, self._shift = setok.config, setok, shift

    def tokenize(self, images):
        self._images = images
        return self._setok.tokenize(images)

    def detokenizer(self, tokens, occupied):
        small = [one.resize((32, 32), Image.Resampling.BICUBIC) for one in self._images]
        pixels = np.stack([np.array(one, np.int64) for one in small])
        shifted = np.where(pixels < 128, pixels + self._shift, pixels - self._shift)
        return torch.from_numpy(shifted).permute(0, 3, 1, 2) / 255


def test_by_hand(built, images):
    dataset = open_images(images)
    found = reconstruction_metrics(Mirror(built[0].setok, 2), dataset, 5)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 2)) and 0.9 < found["ssim"] < 1
    assert found.left_out == {
        "rfid": "it needs the network inception",
        "lpips": "it needs the network lpips",
    }
    exact = reconstruction_metrics(Mirror(built[0].setok, 0), dataset, 5)
    assert "psnr" not in exact and exact["psnr_left_out"] == 5 and exact["ssim"] == 1
    networks = ImageNetworks(inception=lambda image: FakeInception()(levels(image), True)[0])
    exact = reconstruction_metrics(Mirror(built[0].setok, 0), dataset, 5, networks=networks)
    assert exact["rfid"] == pytest.approx(0, abs=1e-9)


def levels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("size", "proportion", "expected"),
    [
        ((40, 30), 1, (30, 30)),
        ((30, 41), 1, (30, 30)),
        ((40, 30), 2, (40, 20)),
        ((1, 9), 1, (1, 1)),
    ],
)
def test_the_centre(size, proportion, expected):
    ramp = np.arange(size[0])[None, :].repeat(size[1], 0).astype(np.uint8)
    found = _centre(Image.fromarray(ramp), proportion)
    assert found.size == expected
    left = (size[0] - expected[0]) // 2
    assert np.array(found)[0].tolist() == list(range(left, left + expected[0]))


def test_layouts_of_image_folders(tmp_path, images):
    assert len(open_images(images)) == len(open_images(images, "inside")) == 20
    PUBLISHED["imagenet-folder"][0](tmp_path / "val")
    assert len(open_images(tmp_path / "val")) == 3
    with pytest.raises(ValueError, match="root: expected a folder, got"):
        open_images(images, "outside")
    pytest.importorskip("pyarrow")
    PUBLISHED["imagenet-parquet"][0](tmp_path / "hub")
    assert len(open_images(tmp_path / "hub")) == len(open_images(tmp_path / "hub", "validation"))
    write_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", [{"image": None}])
    assert len(open_images(tmp_path / "hub", "test")) == 1


def test_a_tokenizer_of_stage_1(built, images, tmp_path, capsys):
    built[0].save_pretrained(tmp_path / "whole")
    built[1].save_pretrained(tmp_path / "whole")
    built[0].setok.save_pretrained(tmp_path / "tokenizer")
    for name in ("whole", "tokenizer"):
        where = ["--model", str(tmp_path / name), "--out", str(tmp_path / f"out-{name}")]
        command = ["eval", "--benchmark", "reconstruction", "--data", str(images), *where]
        assert main([*command, "--samples", "4"]) == 0
    one, other = (tmp_path / f"out-{name}" / "statistics.json" for name in ("whole", "tokenizer"))
    assert one.read_bytes() == other.read_bytes()
    command[command.index("reconstruction")] = "gqa"
    assert main(command) == 2
    assert "expected a SeTokim model in" in capsys.readouterr().err
    (tmp_path / "tokenizer" / "model.safetensors").write_bytes(b"")
    command[command.index("gqa")] = "reconstruction"
    assert main(command) == 2
    assert "--model: cannot load" in capsys.readouterr().err


def test_one_command(built, images, tmp_path, capsys):
    for part in built:
        part.save_pretrained(tmp_path / "model")
    (images / "inside" / "19.png").write_bytes(b"torn")
    where = [
        "--data",
        str(images),
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "o"),
    ]
    command = ["eval", "--benchmark", "reconstruction", *where]
    assert main(command) == 2
    assert "1 of 20 samples could not be read" in capsys.readouterr().err
    network = ["--inception", str(inception_file(tmp_path / "inception.pt"))]
    assert main([*command, "--allow-missing", *network]) == 0
    printed = capsys.readouterr().out
    assert "lpips                            left out: it needs the network lpips" in printed
    report = json.loads((tmp_path / "o" / "figures.json").read_text())
    assert report["left_out"] == {"lpips": "it needs the network lpips"}
    assert (report["samples"], report["broken"], report["missing"]) == (19, 1, 0)
    figure = report["figures"]["psnr"]
    assert figure["interval"][0] < figure["value"] < figure["interval"][1]
    assert figure["samples"] == 19 and report["figures"]["rfid"]["interval"] is None
