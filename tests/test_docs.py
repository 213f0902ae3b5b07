"""The code of README.md and docs/ runs, its commands exist, and the site builds strictly."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import registries, tiny_embedded, tiny_folders, tiny_llava, tiny_setokim
from helpers.markdown import code_blocks, commands
from setok_cli.main import build_parser, main
from setokim.utils.pretrained import EMBEDDED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

# What the text of a page says that the reader has, run before the first block with such a line.
GIVEN = {
    "docs/migrate.md": {
        "original.cluster_dpc_knn(": """
import torch
import setok_kernels as sk
from setok_kernels.compat.tcformer import cluster_dpc_knn
B, N = 2, 80
token_dict = {"x": torch.randn(B, N, 8)}
class original:
    @staticmethod
    def cluster_dpc_knn(token_dict, count):
        noise = torch.rand(B, N) * 1e-6
        return cluster_dpc_knn(token_dict, count, noise=noise)
""",
        "batch.bincount()": """
batch, longest, x = torch.tensor([0] * 90 + [1] * 70), 90, torch.randn(160, 8)
""",
        "weights=attention": "x, attention, answers = torch.randn(B, N, 8), torch.rand(B, N), None",
        "labels_of_the_original": "labels = labels_of_the_original = torch.randint(4, (B, N))",
    },
    "docs/scoring.md": {
        'benchmark.open("gqa"': """
import json
from pathlib import Path
from helpers import published
Path("gqa").mkdir()
published.gqa(Path("gqa"))
answers = [{"question_id": f"0{number}", "answer": "yes"} for number in (1, 2, 3)]
Path("answers.jsonl").write_text("\\n".join(map(json.dumps, answers)))
""",
    },
}
# Names of files that pages use for the reader's own.
IMAGES = ("photo.jpg", "scene.png", "folder/one.png")
# At most so many blocks are not run, each for a reason of its own.
MOST_NOT_RUN = 4


@functools.cache
def blocks_of(name: str):
    return code_blocks((ROOT / name).read_text(encoding="utf-8"))


def write_setokim(folder: Path) -> None:
    model, processor = tiny_setokim.build()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


# Models that earlier commands of a page train in minutes; here they are random and small.
MODELS = {
    "runs/small-world/stage3/model": write_setokim,
    # Those of others are random and small, too.
    "models/llava-1.5-7b-hf": tiny_llava.write_llava,
    "models/llava-v1.6-mistral-7b-hf": tiny_folders.write_llava_next,
    "models/paligemma2-3b-mix-448": tiny_folders.write_paligemma,
    "models/siglip-so400m-patch14-384": tiny_folders.write_siglip,
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A random model in place of the embedded one, whose answers take longer."""
    return tiny_embedded.write_model(tmp_path_factory.mktemp("embedded"))


@pytest.fixture
def readers_folder(tmp_path, stand_in, monkeypatch):
    """A folder with what the pages name; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EMBEDDED, "small-world", stand_in)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for name in IMAGES:
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((160, 120), Image.Resampling.NEAREST).save(name)
    for name in ("model", "examples", "bench"):
        Path(name).symlink_to(ROOT / name)
    return tmp_path


def run_page(name: str) -> None:
    """Runs the blocks of Python, one after the other, and the commands that are marked."""
    blocks = blocks_of(name)
    for path, write in MODELS.items():
        if any(f'"{path}"' in block.code for block in blocks if block.language == "python"):
            write(Path(path))
    namespace = {"__name__": "page"}
    given = dict(GIVEN.get(name, {}))
    torch.manual_seed(0)
    for block in blocks:
        for line in [line for line in given if line in block.code]:
            exec(given.pop(line), namespace)
        if block.language == "python" and block.reason is None:
            # Errors show the line of the page.
            code = "\n" * block.line + block.code
            exec(compile(code, ROOT / name, "exec"), namespace)
        elif block.run:
            for command in commands(block.code):
                assert main(arguments_of(command)) == 0, command
    assert not given, f"{name} has no block with {list(given)}"


def arguments_of(command: str) -> list[str] | None:
    """What a command line hands to `setok`, or None where it calls something else."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if not words:
        return None
    if words[0] == "setok" or words[0].endswith("/setok"):
        return words[1:]
    for start in ("setok_cli.main", "setok_kernels"):
        if "-m" in words and words[words.index("-m") + 1 :][:1] == [start]:
            return words[words.index(start) + 1 :]
    return None


def shell_lines(name: str) -> list[str]:
    shells = ("sh", "bash", "shell", "console")
    return [
        line
        for block in blocks_of(name)
        if block.language in shells
        for line in commands(block.code)
    ]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "```python" in (ROOT / name).read_text()]
)
def test_the_python_of_a_page_runs(name, readers_folder):
    with registries.restored():
        run_page(name)


def test_few_blocks_are_not_run_and_each_says_why():
    reasons = [
        (name, block.reason)
        for name in NAMES
        for block in blocks_of(name)
        if block.reason is not None
    ]
    assert len(reasons) <= MOST_NOT_RUN, reasons
    for name, reason in reasons:
        assert re.match(r"(needs|wants) \w+", reason), (name, reason)


def test_each_given_page_and_model_is_in_use():
    assert set(GIVEN) <= set(NAMES)
    texts = "".join((ROOT / name).read_text(encoding="utf-8") for name in NAMES)
    for path in MODELS:
        assert path in texts


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_parse(name, capsys):
    for line in shell_lines(name):
        arguments = arguments_of(line)
        if arguments is None:
            continue
        try:
            build_parser().parse_args(arguments)
        except SystemExit as stop:
            assert not stop.code, (line, capsys.readouterr().err)


@functools.cache
def make_targets() -> set[str]:
    """Targets of the Makefile, those of its patterns included."""
    command = ["make", "--print-data-base", "--question", "--no-builtin-rules", "clean"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return set(re.findall(r"^([\w-]+):(?!=)", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("name", [*NAMES, "CONTRIBUTING.md", "tests/ptxemu/README.md"])
def test_targets_of_make_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    mentioned = [shlex.split(line, comments=True) for line in shell_lines(name)]
    mentioned += [inline.split() for inline in re.findall(r"`(make [^`]+)`", text)]
    for words in mentioned:
        if words[:1] == ["make"]:
            targets = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert targets <= make_targets(), (words, targets - make_targets())


def test_additions_of_diffs_import(readers_folder):
    added = 0
    for name in NAMES:
        for block in blocks_of(name):
            if block.language == "diff":
                lines = [line[1:] for line in block.code.splitlines() if line.startswith("+from")]
                added += len(lines)
                exec("\n".join(lines), {})
    assert added >= 4


def test_marks_and_fences_are_read():
    page = "a\n\n<!-- not run: needs a GPU -->\n```python\nx\n```\n"
    page += "\n  <!-- run -->\n  ```sh\n  y\n  ```\n"
    first, second = code_blocks(page)
    assert (first.language, first.code, first.line) == ("python", "x\n", 4)
    assert first.reason == "needs a GPU" and not first.run
    assert (second.language, second.code, second.run, second.reason) == ("sh", "y\n", True, None)
    for wrong in ("```python\nx\n", "<!-- run -->\n\n```sh\ny\n```\n", "<!-- not run: x -->"):
        with pytest.raises(ValueError, match="line 1: expected"):
            code_blocks(wrong)


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in NAMES[1:]:
        page = Path(name).relative_to("docs").with_suffix("")
        target = tmp_path / ("" if page.name == "index" else page) / "index.html"
        text = target.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link rel="(?:stylesheet|preconnect)")[^>]*>', text)
        assert not [tag for tag in loaded if re.search(r'(?:src|href)="(?:https?:)?//', tag)], name
        assert "arithmatex" not in text, "a formula without MathML"
    reference = (tmp_path / "api/clustering/index.html").read_text(encoding="utf-8")
    assert 'id="setok_kernels.Clusters.pack"' in reference


def test_every_public_name_is_in_the_reference():
    import setok_kernels as sk
    import setokim

    texts = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(r"^::: (\S+)", texts, re.MULTILINE))
    for package, left_out in ((sk, {"__version__", "compat"}), (setokim, set())):
        for name in set(package.__all__) - left_out:
            assert f"{package.__name__}.{name}" in listed, name
    for name in sk.testing.__all__:
        assert f"setok_kernels.testing.{name}" in listed, name
    for name in sk.compat.__all__:
        assert f"setok_kernels.compat.{name}" in listed, name
