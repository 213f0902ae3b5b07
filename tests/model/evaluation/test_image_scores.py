import dataclasses
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from transformers import AutoTokenizer, CLIPModel, ViTModel

from helpers.networks import (
    SIDE,
    FakeInception,
    clip_folder,
    dino_folder,
    inception_file,
    lpips_file,
)
from helpers.published import PUBLISHED, edit_turns, picture
from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.data import Conversation
from setokim.data.conversations import message
from setokim.evaluation import run
from setokim.evaluation.answer_log import AnswerLog
from setokim.evaluation.benchmarks import BENCHMARKS
from setokim.evaluation.image_networks import ImageNetworks
from setokim.evaluation.image_scores import (
    edit_metrics,
    generation_metrics,
    l1,
    l2,
    similarity,
    ssim,
)
from setokim.evaluation.perceptual import PerceptualLoss
from setokim.evaluation.prompting import Response
from setokim.vlm.generation_config import SetokimGenerationConfig

BLACK, WHITE, GREY = ((level,) * 3 for level in (0, 255, 51))  # 51 is a fifth of 255
C1, C2 = 0.01**2, 0.03**2


def flat(colour, size=(24, 16)):
    return Image.new("RGB", size, colour)


def halves(left, right):
    joined = flat(left)
    joined.paste(flat(right, (12, 16)), (12, 0))
    return joined


@pytest.mark.parametrize(
    ("drawn", "wanted", "absolute", "squared"),
    [
        (flat(BLACK), flat(BLACK), 0.0, 0.0),
        (flat(BLACK), flat(WHITE), 1.0, 1.0),
        (flat(GREY), flat(BLACK), 0.2, 0.04),
        (halves(BLACK, WHITE), flat(BLACK), 0.5, 0.5),
        (halves(GREY, BLACK), flat(BLACK), 0.1, 0.02),
        (flat((255, 0, 51)), flat(BLACK), 1.2 / 3, 1.04 / 3),
        # Of another size: the generated image is resized to the target.
        (flat(GREY, (7, 5)), flat(BLACK), 0.2, 0.04),
        (flat(GREY).convert("L"), flat(BLACK), 0.2, 0.04),
    ],
)
def test_differences_by_hand(drawn, wanted, absolute, squared):
    assert math.isclose(l1(drawn, wanted), absolute, abs_tol=1e-12)
    assert math.isclose(l2(drawn, wanted), squared, abs_tol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 255), (255, 255), (51, 255), (51, 0)])
def test_ssim_of_flat_images_by_hand(a, b):
    x, y = a / 255, b / 255
    expected = (2 * x * y + C1) / (x * x + y * y + C1)
    assert math.isclose(ssim(flat((a,) * 3), flat((b,) * 3)), expected, rel_tol=1e-9)


def ssim_of_its_paper(a, b):
    """By its formula, where the window of 11 x 11 lies within the image."""
    scores = []
    for x, y in zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), strict=True):

        def mean(values):
            return gaussian_filter(values, 1.5, radius=5)[5:-5, 5:-5]

        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        upper = (2 * mx * my + C1) * (2 * vxy + C2)
        scores.append((upper / ((mx**2 + my**2 + C1) * (vx + vy + C2))).mean())
    return np.mean(scores)


@pytest.mark.parametrize("seed", range(5))
def test_ssim_is_its_formula(seed):
    one, other = picture(seed), Image.blend(picture(seed), picture(seed + 1), 0.3)
    expected = ssim_of_its_paper(*(np.asarray(p, np.float64) / 255 for p in (one, other)))
    assert math.isclose(ssim(one, other), expected, rel_tol=1e-9)
    assert ssim(one, one) == 1.0


def test_ssim_of_small_images():
    expected = r"^target: expected at least 11 x 11 pixels, got 24 x 10$"
    with pytest.raises(ValueError, match=expected):
        ssim(flat(BLACK), flat(BLACK, (24, 10)))
    # Among other pairs it is left out of that metric, and of no other.
    small, whole = (flat(BLACK, (24, 10)),) * 2, (flat(BLACK), flat(WHITE))
    found = edit_metrics([(*small, None), (*whole, None)], ImageNetworks())
    assert found == edit_metrics([(*whole, None)], ImageNetworks()) | {
        "l1": 0.5,
        "l2": 0.5,
        "ssim_left_out": 1,
    }


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 0), (1, 0), 1.0),
        ((1, 0), (-3, 0), -1.0),
        ((1, 0), (0, 2), 0.0),
        ((3, 4), (4, 3), 0.96),
        ((1, 1), (1, 0), math.sqrt(0.5)),
    ],
)
def test_similarity_by_hand(one, other, expected):
    one, other = (torch.tensor(values, dtype=torch.float32) for values in (one, other))
    assert math.isclose(similarity(one, other), expected, abs_tol=1e-12)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    for name in ("clip", "dino"):
        (root / name).mkdir()
    return {
        "clip": clip_folder(root / "clip"),
        "dino": dino_folder(root / "dino"),
        "inception": inception_file(root / "inception.pt"),
        "lpips": lpips_file(root / "lpips.safetensors"),
    }


@pytest.fixture(scope="module")
def networks(files):
    return ImageNetworks.load(**files)


def prepared(image):
    """Return the centre crop of an image with the shorter side `SIDE`, in the network's units."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = pixels[:, top : top + SIDE, left : left + SIDE]
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    return ((pixels - mean[:, None, None]) / std[:, None, None])[None]


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_clip_is_that_of_transformers(seed, files, networks):
    model = CLIPModel.from_pretrained(files["clip"])
    tokenizer = AutoTokenizer.from_pretrained(files["clip"])
    # 24 x 16: the shorter side is right already.
    seen = model.get_image_features(prepared(picture(seed))).pooler_output[0]
    assert torch.allclose(networks.clip_image(picture(seed)), seen, atol=1e-6)
    given = tokenizer([f"it is {seed}"], return_tensors="pt")
    read = model.get_text_features(given["input_ids"], given["attention_mask"]).pooler_output[0]
    assert torch.allclose(networks.clip_text(f"it is {seed}"), read, atol=1e-6)
    # More tokens than CLIP has positions.
    assert networks.clip_text("it is " * 50).shape == (6,)


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_dino_is_that_of_transformers(seed, files, networks):
    model = ViTModel.from_pretrained(files["dino"], add_pooling_layer=False)
    # Its shorter side becomes 256 / 224 of the side of the centre crop.
    short = round(256 * SIDE / 224)
    shot = picture(seed).resize((2 * short, short))
    expected = model(prepared(shot)).last_hidden_state[0, 0]
    assert torch.allclose(networks.dino(shot), expected, atol=1e-5)


def test_metrics_of_pairs(networks, files):
    pairs = [(picture(i), picture(i + 1), None if i == 2 else f"it is {i}") for i in range(3)]
    found = edit_metrics(iter(pairs), networks)
    embed, words = networks.clip_image, networks.clip_text
    lpips = PerceptualLoss.lpips(files["lpips"])
    tensors = [
        [torch.from_numpy(np.asarray(p) / np.float32(255)).permute(2, 0, 1)[None] for p in pair[:2]]
        for pair in pairs
    ]
    expected = {
        "l1": np.mean([l1(a, b) for a, b, _ in pairs]),
        "l2": np.mean([l2(a, b) for a, b, _ in pairs]),
        "ssim": np.mean([ssim(a, b) for a, b, _ in pairs]),
        "lpips": np.mean([float(lpips(*pair)) for pair in tensors]),
        "dino": np.mean([similarity(networks.dino(a), networks.dino(b)) for a, b, _ in pairs]),
        "clip_i": np.mean([similarity(embed(a), embed(b)) for a, b, _ in pairs]),
        # The third has no description.
        "clip_t": np.mean([similarity(embed(a), words(text)) for a, _, text in pairs[:2]]),
    }
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[name], expected[name], rel_tol=1e-5) for name in found)
    assert edit_metrics(pairs, ImageNetworks()).keys() == {"l1", "l2", "ssim"}
    assert edit_metrics([], networks) == {}


def test_metrics_of_generated_images(networks):
    # The centre crop of the target, in the size of the generated image.
    colours = np.random.default_rng(0).integers(0, 256, (2, 30, 3)).tolist()
    wanted = [halves(tuple(c), BLACK).resize((48, 32)) for c in colours[0]]
    drawn = [flat(tuple(c), (16, 16)) for c in colours[1]]
    pairs = [(a, b, f"it is {i % 9}") for i, (a, b) in enumerate(zip(drawn, wanted, strict=True))]
    found = generation_metrics(pairs, networks)
    cut = [w.crop((8, 0, 40, 32)).resize((16, 16), Image.Resampling.BICUBIC) for w in wanted]
    network = FakeInception()
    one, other = (
        np.stack(
            [
                network(torch.from_numpy(np.array(p)).permute(2, 0, 1)[None], True)[0].double()
                for p in shots
            ]
        )
        for shots in (drawn, cut)
    )
    covariances = np.cov(one.T), np.cov(other.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    apart = np.square(one.mean(0) - other.mean(0)).sum()
    expected = apart + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert math.isclose(found["fid"], expected, rel_tol=1e-6)
    alike = [similarity(networks.clip_image(a), networks.clip_text(t)) for a, _, t in pairs]
    assert math.isclose(found["clip_t"], np.mean(alike), rel_tol=1e-6)
    assert generation_metrics(pairs, ImageNetworks()) == {}
    assert generation_metrics(pairs[:1], networks).keys() == {"clip_t"}


def test_files_that_are_not_networks(files, tmp_path):
    (tmp_path / "no.pt").write_bytes(b"no script")
    save_file({"x": torch.zeros(1)}, tmp_path / "no.safetensors")
    for name, path, reason in (
        ("clip", tmp_path, "expected the folder of a model, got "),
        ("dino", tmp_path / "none", "expected the folder of a model, got "),
        ("inception", tmp_path / "none", "expected a TorchScript file, got "),
        ("inception", tmp_path / "no.pt", "expected a TorchScript file, got "),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: {reason}"):
            ImageNetworks.load(**{name: path})
    cut = shutil.copytree(files["clip"], tmp_path / "cut")
    os.truncate(cut / "model.safetensors", 1000)
    with pytest.raises(ValueError, match=r"^clip: expected whole weights, got a damaged file"):
        ImageNetworks.load(clip=cut)
    with pytest.raises(ValueError, match=r"^lpips: .*tensors of LPIPS"):
        ImageNetworks.load(lpips=tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match=r"^clip: expected a model of type 'clip' .*'vit'$"):
        ImageNetworks.load(clip=files["dino"])
    (files["dino"] / "preprocessor_config.json").rename(tmp_path / "moved.json")
    with pytest.raises(ValueError, match=r"^dino: .*preprocessor_config\.json"):
        ImageNetworks.load(dino=files["dino"])
    (tmp_path / "moved.json").rename(files["dino"] / "preprocessor_config.json")


def test_generated_images_are_compared_with_their_targets(tmp_path, monkeypatch):
    turns = [
        message("user", picture(0), "a"),
        message("assistant", picture(1)),
        message("user", "b"),
        message("assistant", picture(2).resize((30, 20))),
    ]
    sample = Conversation("edit", tuple(turns), (), "", {"caption": "it"})
    seen = []

    def judge(pairs, networks):
        seen.extend(pairs)
        return {}

    def generate_responses(model, processor, batch, settings, indices):
        # Nothing for the second turn, and nothing for the second sample.
        return [Response(q, "", None if q.turn or q.number else picture(5)) for q in batch]

    monkeypatch.setattr(run, "generate_responses", generate_responses)
    benchmark = dataclasses.replace(BENCHMARKS["evr"], image_metrics=judge)
    log, config = AnswerLog(tmp_path, {}), SetokimGenerationConfig()
    metrics = run.run_benchmark(benchmark, [sample] * 2, None, None, config, log, tmp_path)
    assert metrics == {"undrawn": 3, "samples": 2, "broken": 0}
    (first, wanted, words), (second, other, _), *_ = seen
    assert words == "it" and first.tobytes() == picture(5).tobytes()
    assert wanted.tobytes() == picture(1).tobytes() and other.size == second.size == (30, 20)
    assert not np.asarray(second).any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("instructpix2pix", {"l1", "l2", "ssim", "lpips", "dino", "clip_i", "clip_t"}),
        ("magicbrush", {"l1", "l2", "ssim", "lpips", "dino", "clip_i", "clip_t"}),
        ("magicbrush-multi-turn", {"l1", "l2", "ssim", "lpips", "dino", "clip_i", "clip_t"}),
        ("evr", {"l1", "l2", "ssim", "lpips", "dino", "clip_i"}),
        ("ma5k", {"l1", "l2", "ssim", "lpips", "dino", "clip_i"}),
        ("coco-generation", {"fid", "clip_t"}),
    ],
)
def test_metrics_of_a_command(name, expected, files, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    data, model, out = (tmp_path / part for part in ("data", "model", "out"))
    data.mkdir()
    # Of the two images of `edit_turns`, the last turns count.
    makes = {"coco-generation": PUBLISHED["coco-captions"][0], "magicbrush-multi-turn": edit_turns}
    (makes[name] if name in makes else PUBLISHED[name][0])(data)
    for part in build():
        part.save_pretrained(model)
    split = ["--split", "val2017"] if name == "coco-generation" else []
    command = ["eval", "--benchmark", name, "--data", str(data), "--model", str(model)]
    command += ["--out", str(out), "--max-new-tokens", "12", "--sampling-steps", "2", *split]
    assert main(command) == 0
    before = json.loads((out / "metrics.json").read_text())
    counts = {"undrawn", "samples", "broken"}
    assert before.keys() == (expected & {"l1", "l2", "ssim"}) | counts
    lines = (out / "predictions.jsonl").read_text()
    # Networks may come later: no image is generated again.
    given = [word for key, path in files.items() for word in (f"--{key}", str(path))]
    assert main([*command, *given]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() == expected | counts and metrics["samples"] == (
        2 if name in makes and not split else 3
    )
    assert all(math.isfinite(value) for value in metrics.values())
    assert (out / "predictions.jsonl").read_text() == lines
    assert all(metrics[key] == before[key] for key in before)
    if name == "magicbrush":
        # The other texts, of the same images.
        assert main([*command, *given, "--descriptions", "global"]) == 0
        other = json.loads((out / "metrics.json").read_text())
        assert {key for key in other if other[key] != metrics[key]} == {"clip_t"}
        assert (out / "predictions.jsonl").read_text() == lines
    assert main([*command, "--clip", str(tmp_path / "none")]) == 2
    assert "--clip: expected the folder of a model" in capsys.readouterr().err
