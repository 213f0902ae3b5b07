import shutil
import sys

import pytest

# The last flag of a kind counts.
QUICK = """#!{python} -SE
import hashlib, os, pathlib, shutil, subprocess, sys
command = [{plain!r}, *sys.argv[1:], "-O0"]
source = next((path for path in map(pathlib.Path, command) if path.suffix == ".cpp"), None)
if "-c" not in command or source is None:
    os.execv(command[0], command)
root = next(path for path in source.absolute().parents if path.name == "csrc")
target = pathlib.Path(command[command.index("-o") + 1])
key = hashlib.sha256()
for file in sorted(path for path in root.rglob("*") if path.suffix in (".cpp", ".h")):
    key.update(str(file.relative_to(root)).encode() + b"\\0" + file.read_bytes())
flags = [flag for flag in command if not flag.startswith(str(target.parent))]
key.update("\\0".join(flag.replace(str(root.parent), "") for flag in flags).encode())
known = pathlib.Path({made!r}, key.hexdigest())
if not known.exists():
    done = subprocess.run(command).returncode
    if done:
        sys.exit(done)
    partial = known.with_suffix(f".{{os.getpid()}}")
    shutil.copy(target, partial)
    partial.rename(known)
else:
    shutil.copy(known, target)
    dependencies = pathlib.Path(f"{{target}}.d")
    dependencies.write_text(f"{{target}}: {{source}}\\n")
"""


@pytest.fixture(scope="session")
def quick_compiler(tmp_path_factory):
    """The variable that names a C++ compiler that leaves out what makes the kernels fast.

    Each build calls it for every object, as it does any compiler. What it has made once of the same
    sources by the same flags, in whatever folder, it copies: three builds take the time of one.
    """
    folder = tmp_path_factory.mktemp("compiler")
    compiler, made = folder / "c++", folder / "made"
    made.mkdir()
    plain = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    compiler.write_text(QUICK.format(python=sys.executable, plain=plain, made=str(made)))
    compiler.chmod(0o755)
    return {"CXX": str(compiler)}
