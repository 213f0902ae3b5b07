"""Packages that are missing, and the extras that bring them."""

import ast
import pickle
import re
from pathlib import Path

import pytest

from helpers.extras import FOR_USERS, all_extras, modules_of, modules_without
from setok_kernels.extras import MissingExtraError, from_extra

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("setok_kernels", "model", "bench") for path in (ROOT / folder).rglob("*.py")
)


def imports_from_extras():
    """File, extra and module of each import within `with from_extra(...)`."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.With):
                continue
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "from_extra":
                for inner in node.body:
                    [module] = (
                        [inner.module]
                        if isinstance(inner, ast.ImportFrom)
                        else [alias.name for alias in inner.names]
                    )
                    yield path.relative_to(ROOT).as_posix(), call.args[0].value, module


def test_the_remedy_is_in_the_message():
    with pytest.raises(MissingExtraError) as caught, from_extra("generate"):
        import no_such_package.module  # noqa: F401
    error = caught.value
    assert str(error) == 'needs no_such_package: pip install "setok-kernels[generate]"'
    assert (error.name, error.extra) == ("no_such_package", "generate")
    # As a worker process sends it.
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), sent.name, sent.extra) == (str(error), error.name, error.extra)


def test_other_errors_stay():
    with pytest.raises(ImportError, match="cannot import name") as caught, from_extra("generate"):
        from json import no_such_name  # noqa: F401
    assert not isinstance(caught.value, ModuleNotFoundError)
    with pytest.raises(KeyError), from_extra("generate"):
        raise KeyError


def test_each_extra_brings_what_it_is_said_to():
    found = list(imports_from_extras())
    wrong = [one for one in found if one[2].partition(".")[0] not in modules_of(one[1])]
    assert not wrong
    named = {(extra, module.partition(".")[0]) for _, extra, module in found}
    assert {("generate", "diffusers"), ("train", "tensorboard"), ("bench", "jsonschema")} <= named


def test_extras_that_are_named_exist():
    """In messages, and in the documents."""
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").rglob("*.md")]
    named = {
        extra
        for path in [*SOURCES, *documents]
        for extras in re.findall(r'(?:setok-kernels|"\.)\[([\w,-]+)\]', path.read_text())
        for extra in extras.split(",")
    }
    assert {"cli", "model", "generate", "train"} <= named <= set(all_extras())
    assert set(FOR_USERS) <= set(all_extras())


def test_what_is_blocked_is_not_empty():
    """The tests of tests/cli/test_missing_packages.py rest on it."""
    assert {"PIL", "rich"} <= modules_of("cli") and not {"PIL", "rich"} & set(
        modules_without("cli")
    )
    assert {"diffusers", "peft", "accelerate", "tensorboard", "triton", "jsonschema"} <= set(
        modules_without("cli", "model")
    )


def test_all_of_them_are_tested():
    """Except what is large, or not for tests."""
    [listed] = re.findall(r"^EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert set(listed.split(",")) == set(all_extras()) - {"lmms-eval", "mutation", "wheels"}
