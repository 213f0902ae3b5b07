"""Writes the operators as a repository that the `kernels` library loads: `make kernel-hub`.

OUT/build/VARIANT holds the package for the CPU with its library, under an operator namespace of its
own, so that it gets along with an installed setok_kernels; OUT/build.toml says the same to
kernel-builder. `kernels.get_local_kernel(OUT)` loads it.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from build import FLAGS, SOURCES, Build, BuildError, Target, target_named

ROOT = SOURCES.parent
PACKAGE = ROOT / "setok_kernels"
# The oldest torch whose stable ABI the library asks for, as variants write it.
STABLE_ABI = "2.11"
NAMESPACE = 'NAMESPACE = "setok"\n'
IMPORT = re.compile(r"^(\s*)from setok_kernels((?:\.\w+)*) import ", re.MULTILINE)

INIT = '''"""Dynamic token clustering (Algorithm 1 of SeTok, ICLR 2025), for the CPU."""

from .setok_kernels import *  # noqa: F403
from .setok_kernels import __all__, __version__  # noqa: F401
'''
BUILD_TOML = """\
[general]
name = "setok-kernels"
version = 1
edition = 5
license = "Apache-2.0"
backends = ["cpu"]

[torch]
src = ["csrc/operators.cpp", "csrc/operators.h"]

[torch.stable-abi]
cpu = "{abi}"
"""
KERNEL_TOML = """
[kernel.{name}]
backend = "cpu"
depends = ["torch"]
include = ["csrc"]
cxx-flags = {flags}
src = {sources}
"""


def main() -> None:
    """Writes the repository."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/kernel-hub"), help="its folder")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    identity = f"_setok_kernels_cpu_{digest_of(sources())[:7]}"
    target = target_named(sysconfig.get_platform())
    folder = out / "build" / variant_of(target)
    inner = folder / PACKAGE.name
    for path in python_files():
        to = inner / path.relative_to(PACKAGE)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(relative(path, path.read_text(), identity))
    try:
        build = Build(out / "objects", target, defines=(f"-DTORCH_EXTENSION_NAME={identity}",))
        shutil.copy2(build.library(), inner)
    except BuildError as error:
        sys.exit(f"csrc/kernel_hub.py: {error}")
    (folder / "__init__.py").write_text(INIT)
    (folder / "metadata.json").write_text(json.dumps(metadata(folder, identity), indent=2) + "\n")
    (out / "build.toml").write_text(build_toml(build))
    shutil.copytree(SOURCES, out / "csrc", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.rmtree(out / "objects")
    print(folder)


def variant_of(target: Target) -> str:
    """The name of the folder for a platform."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(target.machine, target.machine)
    abi = STABLE_ABI.replace(".", "")
    return f"torch-stable-abi{abi}-cpu-{machine}-{target.system.lower()}"


def python_files() -> list[Path]:
    """What the library's users import; commands are for those who install it."""
    found = sorted(PACKAGE.rglob("*.py"))
    return [path for path in found if path.relative_to(PACKAGE).parts[0] != "cli"]


def sources() -> list[Path]:
    """All that the repository is made of."""
    native = [path for path in sorted(SOURCES.rglob("*")) if path.suffix in (".cpp", ".h")]
    return [*python_files(), *native]


def digest_of(files: list[Path]) -> str:
    """The same for the same contents."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()


def relative(path: Path, text: str, identity: str) -> str:
    """The text of a module with imports that need no name of the package, and its own operators."""
    dots = "." * len(path.relative_to(PACKAGE).parts)

    def replace(match: re.Match) -> str:
        return f"{match[1]}from {dots}{match[2].removeprefix('.')} import "

    text = IMPORT.sub(replace, text)
    if path.name == "config.py":
        assert text.count(NAMESPACE) == 1
        text = text.replace(NAMESPACE, f'NAMESPACE = "{identity}"\n')
    return text


def metadata(folder: Path, identity: str) -> dict:
    """What `kernels` reads before it loads anything."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        "name": "setok-kernels",
        "id": identity,
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
        "digest": {
            "algorithm": "sha256",
            "files": {
                path.relative_to(folder).as_posix(): base64.b64encode(
                    hashlib.sha256(path.read_bytes()).digest()
                ).decode()
                for path in files
            },
        },
    }


def build_toml(build: Build) -> str:
    """The configuration of kernel-builder: one section for all sources of the same flags."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for job in build.kernels():
        groups.setdefault(job.flags, []).append(job.source.relative_to(ROOT).as_posix())
    headers = [path.relative_to(ROOT).as_posix() for path in sorted(SOURCES.rglob("*.h"))]
    text = BUILD_TOML.format(abi=STABLE_ABI)
    for number, (flags, files) in enumerate(groups.items()):
        text += KERNEL_TOML.format(
            name=f"setok_{number}",
            flags=json.dumps([*FLAGS, *flags]),
            sources=json.dumps([*files, *headers]),
        )
    return text


if __name__ == "__main__":
    main()
