"""Suites: the entries and sizes that are measured together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from setok_bench.clustering import CLUSTER_BACKWARD, CLUSTER_TOKENS, MERGES
from setok_bench.gpu_parts import PARTS, Part
from setok_bench.hard import DPC_KNN, DPC_KNN_THRESHOLD, THRESHOLD_GREEDY
from setok_bench.merger import MERGER
from setok_bench.neighbours import NEIGHBOURS
from setok_bench.pipeline import ENCODE, PREFILL
from setok_bench.registry import SWEEPS, Entry, Job
from setok_bench.vlm import RATES, VLM_ANSWER, VLM_PREFILL, decoder_of, name_of
from setok_bench.work import Shape

ENTRIES: dict[str, Entry] = {
    entry.op: entry
    for entry in (
        CLUSTER_TOKENS,
        CLUSTER_BACKWARD,
        DPC_KNN,
        DPC_KNN_THRESHOLD,
        THRESHOLD_GREEDY,
        NEIGHBOURS,
        *MERGES,
        MERGER,
        ENCODE,
        PREFILL,
        VLM_PREFILL,
        VLM_ANSWER,
    )
}


@dataclass(frozen=True)
class MemoryJob:
    """Measurement of the peak memory of one call, of `implementation` for `op`."""

    op: str
    implementation: str
    shape: Shape


@dataclass(frozen=True)
class LargestJob:
    """Search for the maximum number of tokens of one image within a memory limit.

    Attributes:
        implementation: name of the implementation of `cluster_tokens`.
        features: number of features of a token.
        limit_bytes: limit in bytes of input, result and temporaries.
        tokens: numbers of tokens to measure. If the last is too large, the search goes on between
            the last two; otherwise a line extrapolates.
    """

    implementation: str
    features: int
    limit_bytes: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Suite:
    """Jobs in order of importance, with their time budget.

    Attributes:
        jobs: timings.
        seconds: seconds of timing for each row.
        dtype: dtype of the features.
        memory: measurements of peak memory.
        largest: searches for the largest input.
        parts: first measurements on a GPU, in this order.
        resumes: flag: a run resumes an earlier one into the same file.
        device: device type "cpu" or "cuda", or None for either.
        budget: seconds for the whole suite; the rest is reported as left out.
    """

    jobs: tuple[Job, ...]
    seconds: float
    dtype: torch.dtype
    memory: tuple[MemoryJob, ...] = ()
    largest: tuple[LargestJob, ...] = ()
    parts: tuple[Part, ...] = ()
    resumes: bool = False
    device: str | None = None
    budget: float = 3600.0


def _shapes(dtype: torch.dtype, *texts: str) -> tuple[Shape, ...]:
    return tuple(Shape.parse(text, dtype) for text in texts)


def _job(entry: Entry, dtype: torch.dtype, names: str, *texts: str, group="main") -> Job:
    return Job(entry.only(tuple(names.split())), _shapes(dtype, *texts), group)


def _sweeps(dtype: torch.dtype, names: str, tokens: list[int], images: list[int]) -> list[Job]:
    return [
        _job(CLUSTER_TOKENS, dtype, names, *(f"1x{n}x1152" for n in tokens), group="tokens"),
        _job(CLUSTER_TOKENS, dtype, names, *(f"{b}x729x1152" for b in images), group="images"),
    ]


_FP32, _BF16 = torch.float32, torch.bfloat16
_SIX = ("1x729x1152", "8x729x1152", "1x576x1024", "8x576x1024", "1x256x384", "8x256x384")
_TWO = _SIX[:2]

QUICK = Suite(
    jobs=(
        _job(CLUSTER_TOKENS, _FP32, "cpp triton reference bmm", "1x256x384", "1x729x1152"),
        _job(CLUSTER_BACKWARD, _FP32, "cpp triton forward", "1x729x1152"),
        _job(DPC_KNN, _FP32, "cpp triton bmm", "1x729x1152"),
    ),
    seconds=2.0,
    dtype=_FP32,
    budget=55.0,
)
CPU = Suite(
    jobs=(
        _job(CLUSTER_TOKENS, _FP32, "cpp reference bmm", *_SIX),
        _job(CLUSTER_BACKWARD, _FP32, "cpp reference forward", *_SIX),
        _job(DPC_KNN, _FP32, "cpp tcformer chatunivi bmm", *_TWO),
        _job(DPC_KNN_THRESHOLD, _FP32, "cpp setok bmm", *_TWO),
        _job(THRESHOLD_GREEDY, _FP32, "cpp divt bmm", *_TWO),
        _job(NEIGHBOURS, _FP32, "cpp cdist_topk faiss scikit_learn bmm", *_TWO, "1x4096x1152"),
        *(Job(entry, _shapes(_FP32, "8x729x1152")) for entry in MERGES),
        *_sweeps(_FP32, "cpp reference bmm", [256, 512, 1024, 2048, 4096], [1, 2, 4, 8, 16, 32]),
        _job(CLUSTER_TOKENS, _FP32, "cpp compiled_reference bmm", "1x729x1152", group="compiled"),
    ),
    seconds=5.0,
    dtype=_FP32,
    memory=(
        MemoryJob("cluster_tokens", "cpp", Shape.parse("1x16384x1152", _FP32)),
        MemoryJob("cluster_backward", "cpp", Shape.parse("1x16384x1152", _FP32)),
        MemoryJob("dpc_knn", "cpp", Shape.parse("1x16384x1152", _FP32)),
        MemoryJob("dpc_knn", "tcformer", Shape.parse("1x16384x1152", _FP32)),
        MemoryJob("cluster_backward", "cpp", Shape.parse("8x729x1152", _FP32)),
        MemoryJob("cluster_backward", "reference", Shape.parse("8x729x1152", _FP32)),
    ),
    largest=(
        LargestJob("cpp", 1152, 2 * 10**9, (4096, 16384, 32768)),
        LargestJob("reference", 1152, 2 * 10**9, (1024, 2048, 4096, 8192, 16384)),
    ),
    device="cpu",
)
PIPELINE = {
    "cpu": (
        _job(ENCODE, _FP32, "encoder encoder_and_clusters clusters", "1x729x384", "8x729x384"),
        Job(PREFILL, _shapes(_FP32, "1x729x512")),
        Job(MERGER, _shapes(_FP32, "8x729x384")),
    ),
    "cuda": (
        _job(ENCODE, _BF16, "encoder encoder_and_clusters clusters", "1x729x1152", "64x729x1152"),
        Job(PREFILL, _shapes(_BF16, "1x729x4096", "8x729x4096")),
        Job(MERGER, _shapes(_BF16, "64x729x1152")),
    ),
}
_VLM_SHAPES = {
    "cpu": _shapes(_FP32, "1x576x512", "1x1024x448"),
    "cuda": _shapes(_BF16, "1x576x4096", "1x1024x3584"),
}
VLM = {
    device: Suite(
        # The group says which model, at which scale.
        jobs=tuple(
            Job(entry, (shape,), decoder_of(shape.features).name)
            for shape in shapes
            for entry in (VLM_PREFILL, VLM_ANSWER)
        ),
        seconds=6.0,
        dtype=shapes[0].dtype,
        memory=tuple(
            MemoryJob("vlm_prefill", name_of(rate), shape)
            for shape in shapes
            for rate in (None, *RATES)
        ),
    )
    for device, shapes in _VLM_SHAPES.items()
}
GPU = Suite(
    jobs=(
        _job(
            CLUSTER_TOKENS,
            _BF16,
            "triton reference bmm",
            "64x729x1152",
            "8x729x1152",
            "1x729x1152",
            "8x2916x1152",
            "1x16384x1152",
        ),
        _job(CLUSTER_BACKWARD, _BF16, "triton reference forward", "64x729x1152", "8x2916x1152"),
        *PIPELINE["cuda"],
        _job(
            CLUSTER_TOKENS, _BF16, "triton compiled_reference bmm", "64x729x1152", group="compiled"
        ),
        _job(DPC_KNN, _BF16, "triton tcformer chatunivi flash_kmeans bmm", "64x729x1152"),
        _job(THRESHOLD_GREEDY, _BF16, "triton bmm", "64x729x1152"),
        _job(NEIGHBOURS, _BF16, "triton cdist_topk bmm", "64x729x1152", "1x16384x1152"),
        *(Job(entry, _shapes(_BF16, "64x729x1152")) for entry in MERGES),
        *_sweeps(_BF16, "triton bmm", [256, 512, 1024, 2048, 4096, 8192, 16384], [1, 4, 16, 64]),
    ),
    seconds=3.0,
    dtype=_BF16,
    memory=(
        MemoryJob("cluster_tokens", "triton", Shape.parse("1x16384x1152", _BF16)),
        MemoryJob("cluster_backward", "triton", Shape.parse("1x16384x1152", _BF16)),
    ),
    parts=PARTS,
    resumes=True,
    device="cuda",
    # Ten minutes minus the longest row.
    budget=570.0,
)

SUITES = ("quick", "cpu", "gpu", "pipeline", "vlm")


def get_suite(name: str, device: torch.device) -> Suite:
    """Return the suite of this name for this device.

    Raises:
        ValueError: the name is unknown, or the suite is for another device.
    """
    pipeline = Suite(PIPELINE[device.type], 10.0, _FP32 if device.type == "cpu" else _BF16)
    suites = {"quick": QUICK, "cpu": CPU, "gpu": GPU, "pipeline": pipeline, "vlm": VLM[device.type]}
    if name not in suites:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {name!r}")
    suite = suites[name]
    if suite.device not in (None, device.type):
        raise ValueError(f"suite: {name!r} is for a {suite.device} device, got {device}")
    return suite


def select(
    suite: Suite,
    only: tuple[str, ...] = (),
    shapes: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
) -> Suite:
    """Select a part of a suite.

    Args:
        suite: complete suite.
        only: operations and parts to keep; all if empty.
        shapes: shapes "BxNxD" in place of the suite's; parts, sweeps, peaks and largest inputs are
            then left out.
        dtype: dtype of the features in place of the suite's.

    Raises:
        ValueError: the suite has no such operation, or a shape is malformed.
    """
    ops = dict.fromkeys([*(job.entry.op for job in suite.jobs), *(p.name for p in suite.parts)])
    for name in only:
        if name not in ops:
            raise ValueError(f"only: expected some of {', '.join(ops)}, got {name!r}")
    jobs = [job for job in suite.jobs if not only or job.entry.op in only]
    memory = [job for job in suite.memory if not only or job.op in only]
    parts = [part for part in suite.parts if part.name in only or not (only or shapes)]
    largest = suite.largest if not only or "cluster_tokens" in only else ()
    dtype = dtype or suite.dtype
    if shapes:
        wanted, memory, largest = _shapes(dtype, *shapes), (), ()
        jobs = [replace(job, shapes=wanted) for job in jobs if job.group not in SWEEPS]
    else:
        jobs = [replace(job, shapes=tuple(_as(dtype, s) for s in job.shapes)) for job in jobs]
        memory = [replace(job, shape=_as(dtype, job.shape)) for job in memory]
    return replace(
        suite,
        jobs=tuple(jobs),
        memory=tuple(memory),
        largest=tuple(largest),
        parts=tuple(parts),
        dtype=dtype,
    )


def _as(dtype: torch.dtype, shape: Shape) -> Shape:
    return replace(shape, dtype=dtype)
