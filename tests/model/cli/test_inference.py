"""The options of generation on the command line are those of the model."""

import argparse

import pytest

from setok_cli.main import build_parser, main
from setokim.cli import evaluate
from setokim.cli._inference import GENERATION_OPTIONS, add_generation_options, given_options
from setokim.evaluation.settings import GenerationSettings
from setokim.vlm.generation_config import SetokimGenerationConfig

COMMANDS = {
    "chat": ["chat"],
    "generate": ["generate", "--out", "o", "text"],
    "edit": ["edit", "--model", "m", "--out", "o", "--image", "i", "text"],
    "segment": ["segment", "--model", "m", "--out", "o", "--image", "i", "text"],
    "eval": ["eval", "--benchmark", "gqa", "--data", "d", "--model", "m", "--out", "o"],
}
GIVEN = {
    "--max-new-tokens": "3",
    "--temperature": "0.5",
    "--top-p": "0.9",
    "--guidance": "2",
    "--steps": "4",
    "--image-temperature": "0.1",
    "--max-image-tokens": "5",
}
READ = dict(zip(GENERATION_OPTIONS, (3, 0.5, 0.9, 2.0, 4, 0.1, 5), strict=True))


def test_the_defaults_are_those_of_the_configuration():
    defaults = {name: default for name, (_, default, _) in GENERATION_OPTIONS.items()}
    usual = SetokimGenerationConfig().options
    assert {name: repr(value) for name, value in defaults.items()} == {
        name: repr(usual[name]) for name in defaults
    }
    # The other fields follow from the images, so no command has them.
    assert usual.keys() - defaults.keys() == {"image_size", "mask_size", "use_cache"}
    assert {"max_new_tokens": GenerationSettings().max_new_tokens} == evaluate._DEFAULTS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_same_options(command):
    words = [word for pair in GIVEN.items() for word in pair]
    arguments = build_parser().parse_args([*COMMANDS[command], *words])
    assert given_options(arguments) == READ and arguments.device == "cpu"
    assert SetokimGenerationConfig(**READ).options.items() >= READ.items()
    # The earlier name in `setok eval`.
    older = build_parser().parse_args([*COMMANDS[command], "--sampling-steps", "4"])
    assert given_options(older) == {"sampling_steps": 4}
    assert given_options(build_parser().parse_args(COMMANDS[command])) == {}


def test_help_shows_the_defaults_of_the_command(capsys):
    for command, tokens in (("chat", 256), ("eval", 64)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert f"visual tokens included (default: {tokens})" in said
        assert "--steps COUNT" in said and "(default: none)" in said
    parser = argparse.ArgumentParser()
    add_generation_options(parser, {"guidance": 3.0})
    assert "no guidance (default: 3.0)" in " ".join(parser.format_help().split())


def test_the_settings_that_answers_depend_on():
    """Older folders have the same keys and can be resumed."""
    arguments = build_parser().parse_args(COMMANDS["eval"])
    usual = SetokimGenerationConfig()
    samples, config = evaluate._config({}, arguments, usual)
    assert evaluate._kept(samples, config) == {
        "samples": None,
        "max_new_tokens": 64,
        "guidance": 1.0,
        "sampling_steps": 25,
        "image_temperature": 1.0,
    }
    arguments = build_parser().parse_args(
        [*COMMANDS["eval"], "--temperature", "0.5", "--samples", "3", "--max-new-tokens", "9"]
    )
    own = {"samples": 7, "sampling_steps": 20, "max_new_tokens": 8}
    samples, config = evaluate._config(own, arguments, usual)
    kept = evaluate._kept(samples, config)
    assert (kept["samples"], kept["sampling_steps"], kept["max_new_tokens"]) == (3, 20, 9)
    assert kept["temperature"] == 0.5 and "top_p" not in kept
    bare = build_parser().parse_args(COMMANDS["eval"])
    assert evaluate._config(own, bare, usual)[0] == 7
    # The model's own options, but for the length of an answer.
    own_of_model = usual.replace(image_temperature=0.0, sampling_steps=20, max_new_tokens=300)
    options = evaluate._config({}, bare, own_of_model)[1].options
    assert options == own_of_model.options | {"max_new_tokens": 64}
    assert evaluate._config({"sampling_steps": 3}, bare, own_of_model)[1].sampling_steps == 3
    arguments.samples = 0
    with pytest.raises(ValueError, match=r"^samples: expected at least 1, got 0$"):
        evaluate._config({}, arguments, usual)
