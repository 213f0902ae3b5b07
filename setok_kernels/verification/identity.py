"""Scope of a verdict: the device, and everything that generates machine code for it."""

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from setok_kernels import _cuda_kernels

_DRIVER_NOTE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Identity:
    """A device with its driver, compilers and kernels; each identity has its own verdict.

    Attributes:
        device: name of the device, e.g. "NVIDIA H100 80GB HBM3".
        capability: compute capability, e.g. "9.0".
        uuid: unique id of the device.
        driver: version of the driver.
        torch: version of torch, with its CUDA version.
        triton: version of Triton.
        package: version of setok_kernels.
        sources: digest of the Python sources of the package and the kernels.
        cuda: digest of the CUDA kernels of `SETOK_CUDA=1`, else empty.
    """

    device: str
    capability: str
    uuid: str
    driver: str
    torch: str
    triton: str
    package: str
    sources: str
    cuda: str = ""

    @property
    def key(self) -> str:
        """Name of the verdict's file, without suffix."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def identify(device: torch.device) -> Identity:
    """Return the identity of a CUDA device, or of the CPU with Triton's interpreter."""
    from setok_kernels import __version__

    name, capability, uuid, driver = _describe(device)
    return Identity(
        device=name,
        capability=capability,
        uuid=uuid,
        driver=driver,
        torch=f"{torch.__version__} (CUDA {torch.version.cuda}, HIP {torch.version.hip})",
        triton=_version_of("triton"),
        package=__version__,
        sources=_digest_of_sources(),
        cuda=_cuda_kernels.digest(),
    )


def _describe(device: torch.device) -> tuple[str, str, str, str]:
    if device.type == "cpu":
        return "CPU, interpreted", torch.backends.cpu.get_cpu_capability(), "", ""
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    return properties.name, capability, str(properties.uuid), _driver()


@functools.cache
def _driver() -> str:
    """Return the newest CUDA version of the driver, and the driver's own version if known."""
    supported = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(supported))
    except (OSError, AttributeError):
        # ROCm or Windows: the version of torch must suffice.
        supported.value = 0
    try:
        version = " ".join(_DRIVER_NOTE.read_text().splitlines()[0].split())
    except (OSError, IndexError):
        version = "number unknown"
    return f"{supported.value} ({version})"


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def _digest_of_sources() -> str:
    """Return a digest of all Python files of both packages: an edited checkout verifies anew."""
    digest = hashlib.sha256()
    for package in ("setok_kernels", "setok_triton"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None
        for folder in spec.submodule_search_locations:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]
