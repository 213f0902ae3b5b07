"""The options of generation: their values, their checks, and where they come from."""

import pytest
import torch
from transformers import AutoModel, GenerationConfig

from helpers.tiny_setokim import build, picture
from setokim.data.conversations import message
from setokim.vlm.generation_config import OPTIONS, SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel

OTHERS = {
    "max_new_tokens": 7,
    "temperature": 1.5,
    "top_p": 0.9,
    "guidance": 2.0,
    "sampling_steps": 4,
    "image_temperature": 0.5,
    "max_image_tokens": 3,
    "image_size": (48, 40),
    "mask_size": (12, 10),
    "use_cache": False,
}


@pytest.fixture(scope="module")
def built():
    return build()


def test_every_option_survives_a_file(tmp_path):
    config = SetokimGenerationConfig(**OTHERS)
    assert config.options == OTHERS and list(OTHERS) == list(OPTIONS)
    usual = SetokimGenerationConfig().options
    assert [name for name in OPTIONS if usual[name] == OTHERS[name]] == []
    config.save_pretrained(tmp_path)
    for again in (
        SetokimGenerationConfig.from_pretrained(tmp_path),
        SetokimGenerationConfig.from_dict(config.to_dict()),
        SetokimGenerationConfig().replace(**OTHERS),
    ):
        assert again == config and again.options == OTHERS
    assert isinstance(config, GenerationConfig) and config != SetokimGenerationConfig()


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected at least 1, got 0"),
        ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens: expected int, got 2.5"),
        ({"max_new_tokens": None}, TypeError, "max_new_tokens: expected int, got None"),
        ({"sampling_steps": True}, TypeError, "sampling_steps: expected int, got True"),
        ({"max_image_tokens": 0}, ValueError, "max_image_tokens: expected at least 1, got 0"),
        ({"temperature": -0.1}, ValueError, "temperature: expected at least 0, got -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected at least 0, got nan"),
        ({"guidance": -1.0}, ValueError, "guidance: expected at least 0, got -1.0"),
        ({"guidance": "2"}, TypeError, "guidance: expected float, got '2'"),
        ({"top_p": 0}, ValueError, "top_p: expected a number above 0 and up to 1, got 0"),
        ({"image_size": 32}, TypeError, "image_size: expected height and width, got 32"),
        ({"mask_size": (4,)}, TypeError, r"mask_size: expected height and width, got \(4,\)"),
        ({"mask_size": (4, 0)}, ValueError, "mask_size: expected at least 1, got 0"),
        ({"mask_size": None}, TypeError, "mask_size: expected height and width, got None"),
        ({"use_cache": None}, TypeError, "use_cache: expected bool, got None"),
        ({"steps": 4}, ValueError, "steps: expected one of max_new_tokens, .*, got 'steps'"),
        ({"steps": None}, ValueError, "steps: expected one of max_new_tokens"),
        # Options of transformers that would change nothing here.
        ({"top_k": 50}, ValueError, "top_k: expected one of max_new_tokens"),
        ({"do_sample": False}, ValueError, "do_sample: expected one of max_new_tokens"),
    ],
)
def test_options_that_do_not_fit(options, error, expected):
    with pytest.raises(error, match=f"^{expected}"):
        SetokimGenerationConfig(**options)


def test_an_option_that_was_set_later_is_checked(built):
    model, processor = built
    prompt = processor([[message("user", "is?")]], add_generation_prompt=True)
    config = SetokimGenerationConfig(max_new_tokens=1)
    config.num_beams = 4
    with pytest.raises(ValueError, match=r"^num_beams: expected one of"):
        model.generate(**prompt, generation_config=config)
    with pytest.raises(TypeError, match=r"^generation_config: .*, got GenerationConfig$"):
        model.generate(**prompt, generation_config=GenerationConfig())
    with pytest.raises(ValueError, match=r"^beams: expected one of"):
        model.generate(**prompt, beams=4)


def test_defaults_travel_with_a_model(built, tmp_path):
    model, processor = built
    prompt = processor([[message("user", picture(0), "draw a red circle.")]], True)
    assert model.generation_config == SetokimGenerationConfig()
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    older = SetokimModel.from_pretrained(tmp_path)
    assert older.generation_config == SetokimGenerationConfig()
    mine = SetokimGenerationConfig(max_new_tokens=3, image_temperature=0.0)
    older.generation_config = mine
    older.save_pretrained(tmp_path)
    for kind in (SetokimModel, AutoModel):
        again = kind.from_pretrained(tmp_path)
        assert again.generation_config == mine
    assert len(again.generate(**prompt)[0].ids) <= 3
    assert len(again.generate(**prompt, max_new_tokens=1)[0].ids) <= 1
    given = SetokimGenerationConfig(max_new_tokens=2)
    assert len(again.generate(**prompt, generation_config=given)[0].ids) <= 2
    loaded = SetokimModel.from_pretrained(tmp_path, generation_config=given)
    assert loaded.generation_config is given
    (tmp_path / "generation_config.json").write_text('{"num_beams": 4}')
    with pytest.raises(ValueError, match=r"^num_beams: expected one of"):
        SetokimModel.from_pretrained(tmp_path)


def test_a_configuration_is_its_keywords(built):
    model, processor = built
    chat = [message("user", picture(0), "draw a red circle.")]
    prompt = processor([chat], add_generation_prompt=True)
    options = OTHERS | {"max_new_tokens": 12, "use_cache": True}

    def answer(**options):
        generators = [torch.Generator().manual_seed(5)]
        [found] = model.generate(**prompt, generators=generators, **options)
        return found

    expected = answer(**options)
    changed = SetokimGenerationConfig(**options | {"max_new_tokens": 1, "top_p": 0.1})
    for found in (
        answer(generation_config=SetokimGenerationConfig(**options)),
        # Keywords come before the configuration, which stays as it was.
        answer(generation_config=changed, max_new_tokens=12, top_p=0.9),
    ):
        assert found.ids == expected.ids
        for name in ("tokens", "images", "masks"):
            pairs = zip(getattr(found, name), getattr(expected, name), strict=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert (changed.max_new_tokens, changed.top_p) == (1, 0.1)
    assert answer(generation_config=changed).ids != expected.ids
