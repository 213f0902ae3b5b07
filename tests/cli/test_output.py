"""Output of `--json`."""

import json
import sys

from setok_cli.output import print_json, print_to_stderr


def test_a_document_is_json_for_any_reader(capsys):
    nan, inf = float("nan"), float("inf")
    print_json({"a": [1, nan, (inf, -inf)], "b": {"c": nan}, "d": "\udcff ß", "e": True, "f": None})
    said = capsys.readouterr().out

    def refuse(name):
        raise AssertionError(name)

    assert json.loads(said, parse_constant=refuse) == {
        "a": [1, None, [None, None]],
        "b": {"c": None},
        "d": "\udcff ß",
        "e": True,
        "f": None,
    }
    assert said.isascii() and said.endswith("}\n")


def test_everything_else_goes_to_standard_error(capsys):
    for enabled in (True, False):
        with print_to_stderr(enabled):
            print(enabled)
    print("after")
    assert capsys.readouterr() == ("False\nafter\n", "True\n")
    assert sys.stdout is not sys.stderr
