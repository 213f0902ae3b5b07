import importlib
from importlib.metadata import entry_points

import pytest

from helpers.fake_lmms import Instance, Lmms, fake_lmms
from helpers.tiny_setokim import build, picture
from setokim.data.conversations import message
from setokim.evaluation.prompting import generate_answers
from setokim.vlm.generation_config import SetokimGenerationConfig

DOCS = [{"image": picture(i)} for i in range(3)]
SHORT, LONG = {"max_new_tokens": 3}, {"max_new_tokens": 5, "until": ["\n\n"], "temperature": 0}


@pytest.fixture
def adapter(monkeypatch):
    with fake_lmms(monkeypatch, DOCS):
        yield importlib.import_module("setokim.evaluation.lmms_adapter")


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture
def model(adapter, built, tmp_path):
    for part in built:
        part.save_pretrained(tmp_path)
    return adapter.Setokim(str(tmp_path), device="cpu", batch_size="2")


def request_of(text, number, options, shown=lambda doc: [doc["image"]]):
    return Instance((text, options, shown, number, "mine", "test"))


def test_the_entry_point(adapter):
    (found,) = entry_points(group="lmms_eval.models", name="setokim")
    assert found.value == "setokim.evaluation.lmms_adapter:manifest"
    manifest = adapter.manifest()
    module, name = manifest.simple_class_path.rsplit(".", 1)
    assert manifest.model_id == "setokim" and getattr(importlib.import_module(module), name)
    assert issubclass(adapter.Setokim, Lmms)


def test_answers_in_order(model, built):
    asked = [
        ("where is everything?", 0, LONG),
        ("what is and?", 1, SHORT),
        ("<image>\nis?", 2, LONG),
    ]
    said = model.generate_until([request_of(*one) for one in asked])
    for (text, number, options), found in zip(asked, said, strict=True):
        prompt = [message("user", DOCS[number]["image"], text.removeprefix("<image>\n"))]
        config = SetokimGenerationConfig(max_new_tokens=options["max_new_tokens"])
        (alone,) = generate_answers(*built, [prompt], config)
        assert found == built[1].decode(alone.ids).split("\n\n")[0].strip()
    assert len(set(said)) > 1
    # One `<image>` per image is a position; further ones are text.
    (tagged,) = model._prompt(request_of("<image>\n<image>?", 0, SHORT))
    assert tagged == message("user", DOCS[0]["image"], "<image>?")
    # Without an image, and with two.
    assert len(model.generate_until([request_of("is?", 0, SHORT, lambda doc: [])])) == 1
    twice = request_of("is?", 0, SHORT, lambda doc: [doc["image"]] * 2)
    assert len(model.generate_until([twice])) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
        {"temperature": 0.7, "top_p": 0.9, "do_sample": False},
        {"temperature": 0.0, "do_sample": True},
        {"temperature": None, "num_beams": None},
    ],
)
def test_options_for_greedy_decoding(adapter, options):
    assert adapter._longest(SHORT | options) == 3 and adapter._longest(options) == 64


def test_until(adapter):
    assert adapter._until("yes. no", [". ", ""]) == "yes"
    assert adapter._until(" yes ", None) == "yes"
    assert adapter._until("a\nb", "\n") == "a"


def test_sizes_of_batches(adapter, tmp_path):
    for options in ({"batch_size": "auto"}, {"batch_size": 0}, {"max_batch_size": 8}):
        with pytest.raises(ValueError, match=r"^batch_size: expected a number of at least 1, got "):
            adapter.Setokim(str(tmp_path), **options)


def test_a_missing_folder_is_no_name_on_the_hub(adapter):
    with pytest.raises(ValueError, match=r"^expected the folder of a model .*, got no/such/model$"):
        adapter.Setokim("no/such/model")


def test_unsupported_requests(model):
    with pytest.raises(ValueError, match=r"^temperature: expected 0, got 0.7$"):
        model.generate_until([request_of("is?", 0, {"temperature": 0.7})])
    with pytest.raises(ValueError, match=r"^temperature: expected 0, got None$"):
        model.generate_until([request_of("is?", 0, {"do_sample": True})])
    with pytest.raises(ValueError, match=r"^num_beams: expected 1, got 3$"):
        model.generate_until([request_of("is?", 0, {"num_beams": 3})])
    with pytest.raises(ValueError, match=r"^doc_to_visual: expected images, got str$"):
        model.generate_until([request_of("is?", 0, SHORT, lambda doc: ["film.mp4"])])
    with pytest.raises(NotImplementedError, match="rank"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        model.generate_until_multi_round([])
