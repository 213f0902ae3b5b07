"""Links, paths, module names and the README's form: what the documents name exists."""

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [
    Path("README.md"),
    Path("CHANGELOG.md"),
    Path("CONTRIBUTING.md"),
    Path("tests/ptxemu/README.md"),
    *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")),
]
# The changelog names places that are gone.
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FOLDERS = "bench|csrc|docs|examples|model|setok_kernels|tests|triton"
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./*-]*[\w*]")
TEST_FILE = re.compile(r"(?<![\w/])test_\w+\.py")
PACKAGES = {
    "setokim": "model",
    "setok_kernels": "setok_kernels",
    "setok_cli": "setok_kernels/cli",
    "setok_bench": "bench",
    "setok_triton": "triton/setok_triton",
}
MODULE = re.compile(rf"(?<![\w./])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
# A build writes them.
BUILT = {"setok_kernels/libsetok_kernels.so", "setok_kernels/_internals"}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=str)
each_current_document = pytest.mark.parametrize("document", CURRENT, ids=str)


def anchors(text):
    """Anchors of the headings of a Markdown text, as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def broken_links(document):
    """Relative links without a target."""
    broken = []
    for link in LINK.findall(CODE.sub("", document.read_text())):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


def missing_paths(text):
    """Paths of the repository that a text names and that are not there."""
    named = {path.rstrip("/") for path in PATH.findall(text)}
    return sorted(path for path in named - BUILT if not any(ROOT.glob(path)))


@functools.cache
def names_of_test_files():
    return {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def missing_modules(text):
    """Dotted names of our packages that no file has."""
    return sorted(name for name in set(MODULE.findall(text)) if not is_there(name))


def is_there(dotted):
    """Whether a dotted name is a module, or a name within one."""
    package, *parts = dotted.split(".")
    place = ROOT / PACKAGES[package]
    while parts:
        if (place / parts[0]).is_dir():
            place /= parts.pop(0)
        elif (place / f"{parts[0]}.py").is_file():
            place /= f"{parts.pop(0)}.py"
            break
        else:
            break
    file = place if place.is_file() else place / "__init__.py"
    return not parts or re.search(rf"\b{parts[0]}\b", file.read_text()) is not None


@each_document
def test_links_have_targets(document):
    assert broken_links(ROOT / document) == []


@each_current_document
def test_named_paths_exist(document):
    assert missing_paths((ROOT / document).read_text()) == []


@each_current_document
def test_named_test_files_exist(document):
    assert set(TEST_FILE.findall((ROOT / document).read_text())) <= names_of_test_files()


@each_current_document
def test_named_modules_exist(document):
    text = (ROOT / document).read_text()
    text = re.sub(r"setok_kernels\._internals\b", "", text)  # a build writes it
    assert missing_modules(text) == []


def test_what_is_missing_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[a](page.md#one-heading) [b](page.md#two) [c](gone.md) [d](https://x.org/y)\n"
    )
    assert broken_links(page) == ["page.md#two", "gone.md"]
    assert missing_paths("`model/gone.py`, model/vlm, bench/results.") == ["model/gone.py"]
    assert missing_modules(
        "setokim.losses setokim.vlm setok_cli.main setokim.data.readers.READERS setokim.nothing.x"
    ) == ["setokim.losses", "setokim.nothing.x"]


def tree():
    """Folders of the README's tree."""
    text = README.read_text().partition("## Tree")[2].split("```")[1]
    folders, above = [], []
    for line in text.strip("\n").splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name.rstrip("/")]
        folders.append("/".join(above))
    return folders


def test_the_tree_of_the_readme_is_that_of_the_repository():
    folders = tree()
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    rooms = {f"model/{path.parent.name}" for path in (ROOT / "model").glob("*/__init__.py")}
    assert "model/vlm" in rooms and rooms <= set(folders)


def test_the_readme_is_short_and_its_first_screen_complete():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:40])
    for part in (
        "https://arxiv.org/abs/2406.05127",
        "https://github.com/setok-kernels/setok_kernels",
        "pip install ",
        "**Measured**",
        "](docs/algorithm.png)",
    ):
        assert part in first, part
    code = re.search(r"```python\n(.*?)```", first, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) == 5
