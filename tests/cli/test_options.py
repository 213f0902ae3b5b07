"""The options of --help, listed without setok_kernels, against those of setok_kernels."""

import argparse
import dataclasses

import setok_kernels as sk
from setok_cli import options
from setok_kernels import config


def test_the_options_are_the_fields():
    fields = {field.name: field.default for field in dataclasses.fields(sk.ClusterConfig)}
    told = {name: default for name, (_, default, _) in options.FIELD_OPTIONS.items()}
    assert list(told) == list(fields)
    # As text: False == 0.0.
    assert {name: repr(value) for name, value in told.items()} == {
        name: repr(value) for name, value in fields.items()
    }


def test_the_choices_are_those_of_the_library():
    assert options.KERNELS == config.KERNELS
    assert options.ALPHAS == config.ALPHAS
    assert options.DISTANCE_SCALES == config.DISTANCE_SCALES
    assert ("auto", *sk.backends()) == options.BACKENDS


def test_help_shows_the_values_of_the_default_preset():
    parser = argparse.ArgumentParser()
    options.add_config_options(parser)
    said = " ".join(parser.format_help().split())
    for text in ("(default preset: 8)", "(default preset: yes)", "(default preset: max)"):
        assert text in said
    assert "less than this many tokens (default preset: 0.0)" in said
