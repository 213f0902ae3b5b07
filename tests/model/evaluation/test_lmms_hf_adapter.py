import importlib
import json
import sys
from importlib.metadata import entry_points

import pytest

from helpers.fake_lmms import Instance, Lmms, fake_lmms
from helpers.tiny_llava import TOKENS, write_llava
from helpers.tiny_setokim import picture
from setok_kernels import ClusterConfig
from setok_kernels.integrations.transformers import reduce_visual_tokens, restore
from setokim.data.conversations import message
from setokim.evaluation.existing_models import ExistingModel

DOCS = [{"image": picture(i)} for i in range(3)]
SHORT, LONG = {"max_new_tokens": 3}, {"max_new_tokens": 5, "temperature": 0}
ASKED = [
    ("where is everything?", 0, LONG),
    ("what is and?", 1, SHORT),
    ("<image>\nwhat shape is the red object?", 2, LONG),
]


@pytest.fixture
def adapter(monkeypatch):
    with fake_lmms(monkeypatch, DOCS):
        yield importlib.import_module("setokim.evaluation.lmms_hf_adapter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    write_llava(path)
    return path


def answers(model):
    return model.generate_until(
        [
            Instance((text, options, lambda doc: [doc["image"]], number, "mine", "test"))
            for text, number, options in ASKED
        ]
    )


def expected(folder, config=None, **options):
    """The answers of the model itself, one at a time."""
    model = ExistingModel.load(folder)
    if options:
        reduce_visual_tokens(model.model, config, **options)
    found = []
    for text, number, limits in ASKED:
        prompt = [message("user", DOCS[number]["image"], text.removeprefix("<image>\n"))]
        ids = model.generate(model.inputs([prompt]), limits["max_new_tokens"]).ids
        found += model.decode(ids)
    return found


def test_the_entry_point(adapter):
    (found,) = entry_points(group="lmms_eval.models", name="setok_hf")
    assert found.value == "setokim.evaluation.lmms_hf_adapter:manifest"
    manifest = adapter.manifest()
    module, name = manifest.simple_class_path.rsplit(".", 1)
    assert manifest.model_id == "setok_hf" and getattr(importlib.import_module(module), name)
    assert issubclass(adapter.SetokHf, Lmms)


def test_nothing_imports_lmms_eval_before_the_adapter():
    assert "lmms_eval" not in sys.modules


@pytest.mark.parametrize(
    "given",
    [
        {"rate": 0.25},
        {"num_clusters": 5, "exact": True, "features": "projected", "positions": "original"},
        {"rate": 0.5, "merge": "soft", "bandwidth": 0.4, "score_norm": "none"},
    ],
)
def test_answers_are_those_of_the_reduced_model(adapter, folder, given):
    model = adapter.SetokHf(str(folder), device="cpu", batch_size="2", **given)
    fields = {"bandwidth": 0.4, "score_norm": None} if "bandwidth" in given else {}
    options = {n: v for n, v in given.items() if n not in ("bandwidth", "score_norm")}
    assert answers(model) == expected(folder, ClusterConfig(**fields), **options)
    inputs = model._existing.inputs([[message("user", picture(0), "what is it?")]])
    placed = inputs["input_ids"].shape[1]
    assert model._existing.generate(inputs, 1).prompt_tokens <= placed - TOKENS // 2
    restore(model.model)


def test_all_tokens_without_a_budget(adapter, folder):
    model = adapter.SetokHf(str(folder), device="cpu")
    assert answers(model) == expected(folder)
    with pytest.raises(ValueError, match="reduce_visual_tokens"):
        restore(model.model)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"features": "projected"}, "features: expected rate or num_clusters with it, got neither"),
        ({"k": 3}, "k: expected rate or num_clusters with it, got neither"),
        ({"rate": 0.5, "batch_size": 0}, "batch_size: expected a number of at least 1, got 0"),
        ({"rate": 0.5, "num_clusters": 3}, "rate"),
        ({"rate": 2}, "rate"),
        ({"rate": 0.5, "features": "pixels"}, "features"),
    ],
)
def test_arguments_that_do_not_fit(adapter, folder, given, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        adapter.SetokHf(str(folder), device="cpu", **given)
    with pytest.raises(TypeError, match="depth"):
        adapter.SetokHf(str(folder), device="cpu", rate=0.5, depth=3)


def test_a_missing_folder_is_no_name_on_the_hub(adapter, tmp_path):
    with pytest.raises(ValueError, match=r"^expected the folder of a model .*, got no/such/model$"):
        adapter.SetokHf("no/such/model", rate=0.5)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"got one of type 'llama'$"):
        adapter.SetokHf(str(tmp_path), rate=0.5)


def test_unsupported_requests(adapter, folder):
    model = adapter.SetokHf(str(folder), device="cpu")
    with pytest.raises(NotImplementedError, match=r"^setok_hf: .*ranks$"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match=r"^setok_hf: .*several$"):
        model.generate_until_multi_round([])
