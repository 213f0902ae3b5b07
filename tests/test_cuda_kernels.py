"""`SETOK_CUDA`: what it accepts, why the kernels cannot run, and what the driver is asked for."""

import ctypes
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

import setok_kernels as sk
from ptxemu import nvcc
from setok_cli.main import main
from setok_kernels import _cuda_kernels, dispatch
from setok_kernels.verification.identity import identify

compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
needs_compiler = pytest.mark.skipif(compiler is None, reason="no C++ compiler")
# A driver that takes down what it is asked for. Status 209: no binary for the device.
DRIVER = """
#include <cstring>
struct Launch {
  void* function; unsigned grid[3], block[3], shared; void *stream; char argument[224]; int count;
};
static Launch last;
static int modules, refuse;
static void* context = (void*)0x77;
static char names[64], image[64];
extern "C" {
Launch* launched() { return &last; }
const char* asked() { return names; }
const char* loaded() { return image; }
int* refuse_modules() { return &refuse; }
int* module_count() { return &modules; }
void** current() { return &context; }
int cuDriverGetVersion(int* v) { *v = 12040; return 0; }
int cuCtxGetCurrent(void** c) { *c = context; return 0; }
int cuModuleLoadData(void** m, const void* code) {
  if (refuse) return 209;
  strncpy(image, (const char*)code, 63);
  *m = (void*)(long)(0x1000 + ++modules);
  return 0;
}
int cuModuleGetFunction(void** f, void* m, const char* name) {
  strncpy(names, name, 63);
  *f = (char*)m + 0x10;
  return 0;
}
int cuGetErrorName(int status, const char** text) {
  *text = status == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_OTHER";
  return 0;
}
int cuLaunchKernel(void* f, unsigned x, unsigned y, unsigned z, unsigned u, unsigned v, unsigned w,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  if (extra || x == 0) return 1;
  Launch now = {f, {x, y, z}, {u, v, w}, shared, stream, {}, last.count + 1};
  memcpy(now.argument, arguments[0], sizeof now.argument);
  last = now;
  return 0;
}
}
"""


class Launch(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("argument", ctypes.c_char * 224),
        ("count", ctypes.c_int),
    ]


@pytest.fixture
def fresh():
    """Nothing is remembered of a driver."""
    cached = (
        _cuda_kernels._driver,
        _cuda_kernels._why_no_driver,
        _cuda_kernels._module,
        _cuda_kernels._function,
    )
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The package has kernels."""
    for name in ("scope_sm_80.cubin", "scope_sm_90.cubin", "scope_sm_90.ptx"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(_cuda_kernels, "FOLDER", tmp_path)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    return path


@pytest.fixture
def driver(library, fresh, built, monkeypatch):
    """A machine with a device of compute capability 9.0, whose driver only takes notes."""
    monkeypatch.setattr(_cuda_kernels, "_DRIVER", str(library))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    stream = SimpleNamespace(cuda_stream=0xABCDEF0123)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setenv("SETOK_CUDA", "1")
    loaded = ctypes.CDLL(str(library))
    loaded.launched.restype = ctypes.POINTER(Launch)
    loaded.asked.restype = loaded.loaded.restype = ctypes.c_char_p
    for name in ("refuse_modules", "module_count"):
        getattr(loaded, name).restype = ctypes.POINTER(ctypes.c_int)
    loaded.current.restype = ctypes.POINTER(ctypes.c_void_p)
    yield loaded
    loaded.refuse_modules()[0] = 0
    loaded.current()[0] = 0x77


def launch(**fields):
    pytest.importorskip("triton", exc_type=ImportError)
    from setok_triton.cuda_image import Arguments

    _cuda_kernels.launch("scope_fwd_kernel_2", 5, 96, Arguments, fields, torch.device("cuda", 0))


@pytest.mark.parametrize("value", [None, "0"])
def test_off(value, monkeypatch):
    monkeypatch.delenv("SETOK_CUDA", raising=False)
    if value is not None:
        monkeypatch.setenv("SETOK_CUDA", value)
    assert not _cuda_kernels.requested()
    assert dispatch._why_no_cuda(torch.device("cuda")) is None
    assert _cuda_kernels.digest() == ""


@pytest.mark.parametrize("value", ["", "2", "yes", "true"])
def test_other_values_are_an_error(value, monkeypatch, capsys):
    monkeypatch.setenv("SETOK_CUDA", value)
    with pytest.raises(ValueError, match=f"SETOK_CUDA: expected one of 0, 1, got '{value}'"):
        _cuda_kernels.requested()
    assert main(["doctor"]) == 2
    assert "SETOK_CUDA: expected one of 0, 1" in capsys.readouterr().err


def test_the_interpreter_does_not_stand_in(monkeypatch):
    pytest.importorskip("triton", exc_type=ImportError)
    monkeypatch.setenv("SETOK_CUDA", "1")
    said = "backend='triton' cannot run: SETOK_CUDA=1: expected CUDA tensors, got Triton's interpr"
    with pytest.raises(RuntimeError, match=said):
        sk.cluster_tokens(torch.zeros(1, 4, 2), backend="triton")
    assert sk.cluster_tokens(torch.zeros(1, 4, 2)).counts.shape == (1,)


def on_a_gpu(monkeypatch, capability):
    pytest.importorskip("triton", exc_type=ImportError)
    monkeypatch.setenv("SETOK_CUDA", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize("name", ["auto", "triton"])
def test_auto_does_not_drop_the_request(name, monkeypatch, tmp_path):
    """A reason is raised, and the reference does not run in secret."""
    on_a_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(_cuda_kernels, "FOLDER", tmp_path)
    said = f"SETOK_CUDA=1: the CUDA kernels were not found in {tmp_path}; put nvcc on PATH and run"
    with pytest.raises(RuntimeError, match=said):
        dispatch.select_backend(name, torch.device("cuda", 0), torch.float32)
    assert said in sk.backends()["triton"]
    assert sk.backends()["triton"].endswith("; or unset SETOK_CUDA")


def test_the_build_says_why_there_are_none(monkeypatch, tmp_path):
    (tmp_path / "_build_failed.txt").write_text("nvcc was not found (nvcc on PATH, or NVCC)\n")
    monkeypatch.setattr(_cuda_kernels, "FOLDER", tmp_path)
    said = "could not be built when the package was installed (nvcc was not found (nvcc on PATH, or"
    assert said in _cuda_kernels.why_missing()


def test_an_old_device(built, monkeypatch):
    on_a_gpu(monkeypatch, (7, 5))
    with pytest.raises(RuntimeError, match=r"need compute capability 8.0 or newer, got 7.5; or un"):
        dispatch.can_run_triton(torch.device("cuda", 0))


def test_no_driver(fresh, built, monkeypatch):
    on_a_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(_cuda_kernels, "_DRIVER", "libcuda-of-nobody.so.1")
    with pytest.raises(
        RuntimeError, match=r"driver's library libcuda-of-nobody\.so\.1 does not load"
    ):
        dispatch.can_run_triton(torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((8, 0), "scope_sm_80.cubin"),
        ((8, 9), "scope_sm_80.cubin"),
        ((9, 0), "scope_sm_90.cubin"),
        ((10, 0), "scope_sm_90.ptx"),
        ((12, 1), "scope_sm_90.ptx"),
    ],
)
def test_code_for_each_device(capability, name):
    assert _cuda_kernels.image_file(capability).name == name


@needs_compiler
def test_a_launch(driver):
    masks, before = torch.zeros(3), driver.launched().contents.count
    launch(masks=masks, valid=None, k=7, stop_residual=0.25, replay=True, stride_row=2**40)
    from setok_triton.cuda_image import Arguments

    got = driver.launched().contents
    assert driver.asked() == b"scope_fwd_kernel_2" and driver.loaded() == b"scope_sm_90.cubin"
    assert (list(got.grid), list(got.block), got.shared) == ([5, 1, 1], [96, 1, 1], 0)
    assert got.stream == 0xABCDEF0123 and got.count == before + 1
    raw = ctypes.string_at(ctypes.addressof(got) + Launch.argument.offset, 224)
    argument = Arguments.from_buffer_copy(raw)
    assert argument.masks == masks.data_ptr() and argument.valid is None
    assert (argument.k, argument.replay, argument.stride_row) == (7, 1, 2**40)
    assert argument.stop_residual == 0.25


@needs_compiler
def test_modules_belong_to_their_context(driver):
    before = driver.module_count()[0]
    launch(k=1)
    launch(k=2)
    assert driver.module_count()[0] == before + 1
    driver.current()[0] = 0x78
    launch(k=1)
    assert driver.module_count()[0] == before + 2
    driver.current()[0] = None
    with pytest.raises(RuntimeError, match="expected a current CUDA context; call torch"):
        launch(k=1)


@needs_compiler
def test_a_module_that_the_driver_refuses(driver):
    driver.refuse_modules()[0] = 1
    said = (
        r"cuModuleLoadData returned 209 \(CUDA_ERROR_NO_BINARY_FOR_GPU\): the driver, for CUDA "
        r"12.4, does not load scope_sm_90.cubin; update the driver"
    )
    with pytest.raises(RuntimeError, match=said):
        launch(k=1)


@needs_compiler
def test_a_launch_that_the_driver_refuses(driver):
    pytest.importorskip("triton", exc_type=ImportError)
    from setok_triton.cuda_image import Arguments

    with pytest.raises(RuntimeError, match="cuLaunchKernel returned 1"):
        _cuda_kernels.launch("k", 0, 32, Arguments, {}, torch.device("cuda", 0))


@needs_compiler
@pytest.mark.parametrize(
    ("tokens", "kernel", "threads"), [(5, 1, 32), (300, 2, 160), (1100, 4, 288)]
)
def test_a_call_launches_it(driver, monkeypatch, tokens, kernel, threads):
    """In place of the Triton kernel, with the tensors of the operation."""
    pytest.importorskip("triton", exc_type=ImportError)
    from setok_triton import image
    from setok_triton.cuda_image import Arguments

    monkeypatch.setattr(dispatch, "_why_no_cuda", lambda device: None)
    monkeypatch.setattr(image, "image_fwd_kernel", None)
    config = sk.ClusterConfig(k=2, max_clusters=4, kernel="laplacian", stop_residual=0.5)
    out = sk.cluster_tokens(torch.randn(2, tokens, 3), config, backend="triton")
    got = driver.launched().contents
    assert driver.asked() == f"scope_fwd_kernel_{kernel}".encode()
    assert (list(got.grid), list(got.block)) == ([2, 1, 1], [threads, 1, 1])
    raw = ctypes.string_at(ctypes.addressof(got) + Launch.argument.offset, 224)
    argument = Arguments.from_buffer_copy(raw)
    tensors = dict(masks=out.masks, labels=out.labels, score=out.score, delta=out.delta)
    tensors |= dict(density=out.density, seeds=out.decisions.seeds, counts=out.decisions.counts)
    tensors |= dict(knn=out.decisions.knn, parent=out.decisions.parent)
    for name, tensor in tensors.items():
        assert getattr(argument, name) == tensor.data_ptr(), name
    assert argument.valid is None and argument.importance is None and argument.budget is None
    assert (argument.k, argument.max_clusters, argument.longest) == (2, 4, tokens)
    assert argument.pitch == -(-tokens // 16) * 16
    assert (argument.stride_image, argument.stride_row) == (5 * tokens, tokens)
    assert (argument.kernel, argument.sigmoid, argument.replay) == (1, 1, 0)
    assert argument.stop_residual == 0.5


def test_a_verdict_is_of_the_kernels_in_use(built, monkeypatch):
    monkeypatch.delenv("SETOK_CUDA", raising=False)
    plain = identify(torch.device("cpu"))
    monkeypatch.setenv("SETOK_CUDA", "1")
    with_kernels = identify(torch.device("cpu"))
    (_cuda_kernels.FOLDER / "scope_sm_90.cubin").write_text("another build")
    assert len({plain.key, with_kernels.key, identify(torch.device("cpu")).key}) == 3


def test_doctor_names_the_kernels(built, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("SETOK_CUDA", raising=False)
    main(["doctor"])
    said = capsys.readouterr().out
    assert "\nCUDA kernels (SETOK_CUDA=1)\n  built, not requested" in said
    monkeypatch.setattr(_cuda_kernels, "FOLDER", tmp_path / "nothing")
    main(["doctor"])
    assert "the CUDA kernels were not found in" in capsys.readouterr().out


def test_the_struct_has_the_size_of_the_header():
    pytest.importorskip("triton", exc_type=ImportError)
    from setok_triton.cuda_image import Arguments

    header = (nvcc.ROOT / "csrc/cuda/scope.h").read_text()
    body = header[header.index("struct Arguments {") : header.index("};")]
    lines = [line.partition("//")[0].strip() for line in body.splitlines()[1:]]
    names = [line.rstrip(";").split()[-1].lstrip("*") for line in lines if line.endswith(";")]
    assert names == [name for name, _ in Arguments._fields_]
    assert ctypes.sizeof(Arguments) == 224


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_build_makes_every_file(tmp_path):
    made = nvcc.build_script().build_cuda(tmp_path)
    expected = {f"scope_sm_{arch}.{kind}" for arch in (80, 90) for kind in ("ptx", "cubin")}
    assert {path.name for path in made} == expected == {path.name for path in tmp_path.iterdir()}


def test_the_build_without_nvcc(tmp_path, monkeypatch):
    script = nvcc.build_script()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NVCC", raising=False)
    with pytest.raises(script.BuildError, match=r"nvcc was not found \(nvcc on PATH, or NVCC\)"):
        script.build_cuda(tmp_path / "made")
    assert not os.listdir(tmp_path)
