"""The linear probe: its classifier against scikit-learn, and images of a few classes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.evaluation.linear_probe import ProbeImages, fit_classifier, probe_metrics

COLOURS = {"n00000001": (250, 20, 20), "n00000002": (20, 20, 250), "n00000003": (20, 250, 20)}


def write(root, split, number=4, classes=COLOURS):
    for name in classes:
        for index in range(number):
            shade = np.clip(np.array(COLOURS[name]) + 3 * index, 0, 255).astype(np.uint8)
            path = root / split / name / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.broadcast_to(shade, (24, 24, 3)).copy()).save(path)


@pytest.fixture(scope="module")
def setok():
    return build()[0].setok


@pytest.mark.parametrize("seed", range(3))
def test_the_classifier_is_that_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, 200)
    features = generator.normal(size=(200, 6)) * 3 + generator.normal(size=(4, 6))[labels] + 5
    decay = 1e-2
    given = torch.from_numpy(features), torch.from_numpy(labels)
    weight, bias, mean, scale = fit_classifier(*given, decay=decay)
    standard = (features - features.mean(0)) / features.std(0)
    assert torch.allclose((given[0] - mean) / scale, torch.from_numpy(standard))
    theirs = LogisticRegression(C=1 / (decay * 200), tol=1e-8, max_iter=1000)
    theirs.fit(standard, labels)
    assert np.allclose(weight.T.numpy(), theirs.coef_, atol=1e-4)
    found = torch.softmax(torch.from_numpy(standard) @ weight + bias, 1).numpy()
    assert np.allclose(found, theirs.predict_proba(standard), atol=1e-4)


def test_order_of_the_images(tmp_path):
    write(tmp_path, "val", 1)
    write(tmp_path, "train")
    dataset = ProbeImages(tmp_path)
    samples = [dataset[index] for index in range(len(dataset))]
    assert [one.is_training for one in samples] == [False] * 3 + [True] * 12
    assert len({one.source for one in samples}) == 15
    # Training images are not in the order of the classes, and always in the same one.
    assert len({one.caption for one in samples[3:7]}) > 1
    assert [one.source for one in map(ProbeImages(tmp_path).__getitem__, range(15))] == [
        one.source for one in samples
    ]
    with pytest.raises(ValueError, match=r"^root: expected a folder, got .*train"):
        (tmp_path / "train").rename(tmp_path / "away")
        ProbeImages(tmp_path)


def test_accuracy(setok, tmp_path):
    write(tmp_path, "val", 2)
    write(tmp_path, "train")
    shown = []
    found = probe_metrics(setok, ProbeImages(tmp_path), 18, shown.append)
    assert found == {
        **{"top1": 100.0, "top5": 100.0, "samples": 6, "training_samples": 12, "broken": 0}
    }
    assert shown == list(range(1, 19))
    # Labels of one class are exchanged, and one class is unknown.
    (tmp_path / "val" / "n00000001").rename(tmp_path / "val" / "x")
    (tmp_path / "val" / "n00000002").rename(tmp_path / "val" / "n00000001")
    (tmp_path / "val" / "x").rename(tmp_path / "val" / "n00000009")
    found = probe_metrics(setok, ProbeImages(tmp_path), 18)
    assert found["top1"] == pytest.approx(100 / 3) and found["top5"] == pytest.approx(200 / 3)


def test_without_enough_images(setok, tmp_path):
    write(tmp_path, "val", 2)
    write(tmp_path, "train", 3, list(COLOURS)[:1])
    assert "top1" not in probe_metrics(setok, ProbeImages(tmp_path), 6)
    # One class.
    found = probe_metrics(setok, ProbeImages(tmp_path), 9)
    assert found == {"samples": 6, "training_samples": 3, "broken": 0}


def test_the_command(tmp_path):
    data, model, out = (tmp_path / name for name in ("data", "model", "out"))
    write(data, "val", 1)
    write(data, "train")
    (data / "train" / "n00000001" / "0.JPEG").write_bytes(b"none")
    for part in build():
        part.save_pretrained(model)
    where = ["--data", str(data), "--model", str(model), "--out", str(out), "--allow-missing"]
    assert main(["eval", "--benchmark", "imagenet-probe", *where]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["top1"] == 100 and metrics["broken"] == 1 and metrics["training_samples"] == 11
