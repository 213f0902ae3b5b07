"""Features of the explorer's images: computed once, bounded in memory, clustered as elsewhere."""

import threading

import pytest
import torch

import setok_kernels as sk
from helpers.cluster_files import two_halves
from setok_kernels import ClusterConfig
from setokim import SetokModel, build_encoder, load_image
from setokim.explorer import features as module
from setokim.explorer.features import Features
from setokim.explorer.images import Images
from setokim.explorer.reconstruction import Reconstruction
from setokim.visualization.functions import DPCConfig, GreedyConfig

NAME, GRID = "patch-statistics", (6, 8)


class Counted:
    """Encoder that keeps count of its calls."""

    def __init__(self):
        self.encoder, self.calls = build_encoder(NAME, GRID), 0

    def __call__(self, images):
        self.calls += 1
        return self.encoder(images)


@pytest.fixture
def files(tmp_path):
    files = [tmp_path / f"{name}.png" for name in "ab"]
    for i, file in enumerate(files):
        two_halves(64 + i, 48).save(file)
    return files


@pytest.fixture
def encoder():
    return Counted()


@pytest.fixture
def features(files, encoder):
    return Features(Images(files, photographs=False), encoder, NAME, grid=GRID)


@pytest.fixture(scope="module")
def model():
    return SetokModel.from_pretrained().eval()


def with_model(files, model):
    images = Images(files, photographs=False)
    return Features(images, model.encoder, "small-world", reconstruction=Reconstruction(model))


def test_an_image_is_encoded_once(features, encoder):
    for config in (ClusterConfig(), ClusterConfig(k=3), DPCConfig()):
        features.clusters("a.png", config)
    assert encoder.calls == 1
    features.encode("b.png")
    features.encode("a.png")
    assert encoder.calls == 2


def test_many_users_encode_an_image_once(features, encoder):
    users = [threading.Thread(target=features.encode, args=("a.png",)) for _ in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert encoder.calls == 1


def test_the_image_used_least_recently_is_dropped(features, encoder, monkeypatch):
    size = features.encode("a.png").bytes
    monkeypatch.setattr(module, "_MAX_FEATURES", size + 1)
    features.encode("b.png")
    features.encode("b.png")
    assert encoder.calls == 2
    features.encode("a.png")
    assert encoder.calls == 3


def test_one_image_is_kept_however_large(features, encoder, monkeypatch):
    monkeypatch.setattr(module, "_MAX_FEATURES", 1)
    features.encode("a.png")
    features.encode("a.png")
    assert encoder.calls == 1


@pytest.mark.parametrize("config", [ClusterConfig(k=3), DPCConfig(num_clusters=4), GreedyConfig()])
def test_clusters_are_those_of_the_public_functions(features, files, encoder, config):
    x = encoder([load_image(files[0])])
    if isinstance(config, ClusterConfig):
        out = sk.cluster_tokens(x, config)
    elif isinstance(config, DPCConfig):
        out = sk.dpc_knn(x, num_clusters=4)
    else:
        out = sk.threshold_greedy(x, config.threshold)
    result = features.clusters("a.png", config)
    assert torch.equal(torch.tensor(result.labels).flatten(), out.labels[0])
    assert result.tokens == int(out.counts[0])


def test_a_model_clusters_as_it_does_itself(files, model):
    own = with_model(files, model)
    assert next(iter(own.presets)) == "model"
    result = own.clusters("a.png", own.presets["model"])
    visual = model.tokenize([load_image(files[0])])
    assert torch.equal(torch.tensor(result.labels).flatten(), visual.labels[0])


def test_reconstructions(files, model):
    own = with_model(files, model)
    config = own.presets["model"]
    whole, same = own.reconstruct("a.png", config, 0, "all", 0, 0)
    assert whole.size == own.encode("a.png").small.size and same.tobytes() == whole.tobytes()
    assert own.reconstruct("a.png", config, 0, "without", 0, 0)[1].tobytes() != whole.tobytes()
    assert own.reconstruct("a.png", config, 0, "moved", 0.2, 0)[1].tobytes() != whole.tobytes()
    # A label that a smaller number of clusters has left behind.
    for edit in ("without", "moved"):
        assert own.reconstruct("a.png", config, 999, edit, 0, 0)[1] is None
    assert own.reconstruct("a.png", DPCConfig(), 0, "all", 0, 0) == (None, None)


def test_without_a_model_there_is_no_reconstruction(features):
    assert list(features.presets) == ["default", "paper"]
    assert features.reconstruct("a.png", ClusterConfig(), 0, "all", 0, 0) == (None, None)


def test_exports_know_the_image_the_grid_and_the_model(features, files, model):
    line, _, code = features.exports("a.png", ClusterConfig())
    assert str(files[0]) in line and "--grid 6x8" in line and "(6, 8)" in code
    line, text, code = with_model(files, model).exports("a.png", ClusterConfig(k=3))
    assert line.startswith("#") and "k: 3" in text
    assert "SetokModel.from_pretrained('small-world')" in code
    assert "dpc_knn" in with_model(files, model).exports("a.png", DPCConfig())[2]
