"""The extras of setok-kernels as its metadata has them, and what each lets one import."""

import importlib.metadata
import re

# Those that users install; the rest are tools.
FOR_USERS = ("triton", "cli", "model", "generate", "lora", "train", "eval", "score", "bench")
FOR_USERS += ("report", "tokenize", "ray", "datasets", "explore", "completion", "photographs")
FOR_USERS += ("peers", "onnx")


def all_extras():
    """Extra to the names of its packages, in lower case."""
    found = {
        name: set()
        for name in importlib.metadata.metadata("setok-kernels").get_all("Provides-Extra")
    }
    for requirement in importlib.metadata.requires("setok-kernels"):
        if extra := re.search(r"extra == ['\"](.+?)['\"]", requirement):
            found[extra[1]].add(re.match(r"[\w.-]+", requirement)[0].lower())
    return found


def modules_of(*extras):
    """Names that can be imported once these extras are installed, by their own packages."""
    wanted = set().union(*(all_extras()[extra] for extra in extras))
    found = importlib.metadata.packages_distributions()
    return {
        name
        for name, packages in found.items()
        if not name.startswith("_") and wanted & {package.lower() for package in packages}
    }


def modules_without(*extras):
    """Names that cannot be imported by who has installed no extras but these."""
    return sorted(modules_of(*FOR_USERS) - modules_of(*extras))


def modules_behind(*extras):
    """Names that can be imported once these extras are installed, by the packages behind theirs."""
    found, waiting = set(), set().union(*(all_extras()[extra] for extra in extras))
    while waiting:
        package = waiting.pop()
        found.add(package)
        try:
            required = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            # Of another platform or Python.
            continue
        names = {re.match(r"[\w.-]+", one)[0].lower() for one in required if "extra ==" not in one}
        waiting |= names - found
    distributions = importlib.metadata.packages_distributions()
    return {name for name, owners in distributions.items() if found & {o.lower() for o in owners}}
