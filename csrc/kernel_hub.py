"""Write the operators as a repository for the `kernels` library: `make kernel-hub`.

OUT/build/VARIANT has the package for the CPU with its library. Its operators have a namespace of
their own, so that it works beside an installed setok_kernels. OUT/build.toml configures
kernel-builder. `kernels.get_local_kernel(OUT)` loads the repository.
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
# Oldest torch with the library's stable ABI.
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
    """Write the repository."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/kernel-hub"), help="output folder")
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
    # The hub's copy is for the CPU.
    unused = shutil.ignore_patterns("*.py", "__pycache__", "cuda")
    shutil.copytree(SOURCES, out / "csrc", ignore=unused)
    shutil.rmtree(out / "objects")
    print(folder)


def variant_of(target: Target) -> str:
    """Return the folder name of a platform."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(target.machine, target.machine)
    abi = STABLE_ABI.replace(".", "")
    return f"torch-stable-abi{abi}-cpu-{machine}-{target.system.lower()}"


def python_files() -> list[Path]:
    """Return the Python files of the package without the commands."""
    found = sorted(PACKAGE.rglob("*.py"))
    return [path for path in found if path.relative_to(PACKAGE).parts[0] != "cli"]


def sources() -> list[Path]:
    """Return all source files of the repository."""
    native = [path for path in sorted(SOURCES.rglob("*")) if path.suffix in (".cpp", ".h")]
    return [*python_files(), *native]


def digest_of(files: list[Path]) -> str:
    """Return a digest of the contents of the files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()


def relative(path: Path, text: str, identity: str) -> str:
    """Return the text of a module with relative imports and the namespace `identity`."""
    dots = "." * len(path.relative_to(PACKAGE).parts)

    def replace(match: re.Match) -> str:
        return f"{match[1]}from {dots}{match[2].removeprefix('.')} import "

    text = IMPORT.sub(replace, text)
    if path.name == "config.py":
        assert text.count(NAMESPACE) == 1
        text = text.replace(NAMESPACE, f'NAMESPACE = "{identity}"\n')
    return text


def metadata(folder: Path, identity: str) -> dict:
    """Return the metadata that `kernels` reads before it loads the package."""
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
    """Return the configuration of kernel-builder, with one section per set of flags."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for job in build.kernels():
        groups.setdefault(job.flags, []).append(job.source.relative_to(ROOT).as_posix())
    headers = [
        path.relative_to(ROOT).as_posix()
        for path in sorted(SOURCES.rglob("*.h"))
        if path.parent.name != "cuda"
    ]
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
