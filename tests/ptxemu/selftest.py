"""Is the emulator right, and does it find what is wrong? Small Triton kernels whose answer is known.

    python -m ptxemu.selftest --arch 80
"""

import argparse
import re
import sys

from ptxemu import driver

driver.prepare()

import torch
import triton
import triton.language as tl

from ptxemu.engine import Options


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def add_unmasked(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i), mask=i < n)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    v = tl.load(x + row * columns + i, mask=i < columns, other=-float("inf"))
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(out + row * columns + i, e / tl.sum(e, axis=0), mask=i < columns)


@triton.jit
def matmul(
    a, b, c, M, N, K, am, ak, bk, bn,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(0, K, BK):
        x = tl.load(a + m[:, None] * am + (i + k)[None, :] * ak, mask=(m < M)[:, None] & (i + k < K)[None, :], other=0.0)
        y = tl.load(b + (i + k)[:, None] * bk + n[None, :] * bn, mask=(n < N)[None, :] & (i + k < K)[:, None], other=0.0)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def scaled_matmul(
    a, b, c, M, N, K, scale, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """One operand goes through registers."""
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + (i + k)[None, :], mask=(m < M)[:, None], other=0.0)
        y = tl.load(b + (i + k)[:, None] * N + n[None, :], mask=(n < N)[None, :], other=0.0)
        x = (x * scale).to(x.dtype)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def transpose(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i[:, None] * N + i[None, :])
    tl.store(out + i[:, None] * N + i[None, :], tl.trans(v))


@triton.jit
def sort_and_scan(x, out, total, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(out + i, tl.sort(v))
    tl.store(total + i, tl.cumsum(v, 0))


@triton.jit
def count(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + tl.load(x + i, mask=i < n, other=0), 1, mask=i < n)


@triton.jit
def through_memory(x, scratch, out, N: tl.constexpr, SYNC: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(scratch + i, tl.load(x + i))
    if SYNC:
        tl.debug_barrier()
    tl.store(out + i, tl.load(scratch + N - 1 - i))


@triton.jit
def all_write(out):
    tl.store(out, tl.program_id(0))


@triton.jit
def accumulate(x, out, BLOCK: tl.constexpr):
    """Adds to what a neighbour program writes."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i))
    tl.store(out + i + BLOCK, tl.load(x + i))


@triton.jit(do_not_specialize=["shift"])
def promised(x, out, shift, N: tl.constexpr):
    """Says of offsets that they begin at a multiple of 4."""
    i = tl.max_contiguous(tl.multiple_of(shift + tl.arange(0, N), 4), 4)
    tl.store(out + tl.arange(0, N), tl.load(x + i))


class Failed(Exception):
    pass


def close(got, expected, tolerance):
    error = (got.double() - expected.double()).abs().max().item()
    if not error <= tolerance:
        raise Failed(f"error {error:.3g}, allowed {tolerance:.3g}")


def clean(emulator):
    bad = [str(f) for f in emulator.findings if not f.is_note]
    if bad:
        raise Failed(bad[0])


def finds(emulator, *kinds):
    got = {f.kind for f in emulator.findings}
    missing = set(kinds) - got
    if missing:
        raise Failed(f"not found: {missing}; found {got}")


def right(arch):
    """Cases that must run clean."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator).to(dtype)

    def run_add(e):
        x, y, out = random(1000), random(1000), torch.empty(1000)
        add[(4,)](x, y, out, 1000, BLOCK=256)
        close(out, x + y, 0)

    def run_softmax(columns):
        def run(e):
            x, out = random(3, columns), torch.empty(3, columns)
            softmax[(3,)](x, out, columns, BLOCK=triton.next_power_of_2(columns))
            close(out, x.softmax(1), 1e-6)

        return run

    def run_matmul(dtype, precision, transposed, shape, tile, warps):
        def run(e):
            M, N, K = shape
            a = random(K, M, dtype=dtype).T if transposed[0] else random(M, K, dtype=dtype)
            b = random(N, K, dtype=dtype).T if transposed[1] else random(K, N, dtype=dtype)
            c = torch.empty(M, N)
            grid = (triton.cdiv(M, tile[0]), triton.cdiv(N, tile[1]))
            matmul[grid](
                a, b, c, M, N, K, *a.stride(), *b.stride(), PRECISION=precision,
                BM=tile[0], BN=tile[1], BK=tile[2], num_warps=warps,
            )  # fmt: skip
            truth = a.double() @ b.double()
            bound = a.double().abs() @ b.double().abs()
            step = 2.0**-10 if dtype == torch.float32 and precision == "tf32" else 2.0**-20
            close(((c - truth) / bound).abs(), torch.zeros(()), step)

        return run

    def run_scaled(dtype, precision):
        def run(e):
            a, b, c = random(64, 96, dtype=dtype), random(96, 64, dtype=dtype), torch.empty(64, 64)
            scaled_matmul[(1,)](a, b, c, 64, 64, 96, 2.0, PRECISION=precision, BM=64, BN=64, BK=32)
            close(c, 2 * (a.double() @ b.double()), 0.1 if precision == "tf32" else 1e-4)

        return run

    def run_transpose(n, dtype, warps):
        def run(e):
            x, out = random(n, n, dtype=dtype), torch.empty(n, n, dtype=dtype)
            transpose[(1,)](x, out, N=n, num_warps=warps)
            close(out, x.T, 0)

        return run

    def run_sort(e):
        x = torch.randint(-50, 50, (256,), generator=generator, dtype=torch.int32)
        out, total = torch.empty_like(x), torch.empty_like(x)
        sort_and_scan[(1,)](x, out, total, N=256)
        close(out, x.sort().values, 0)
        close(total, x.cumsum(0), 0)

    def run_count(e):
        x = torch.randint(0, 7, (500,), generator=generator, dtype=torch.int32)
        out = torch.zeros(7, dtype=torch.int32)
        count[(4,)](x, out, 500, BLOCK=128)
        close(out, x.bincount(minlength=7), 0)

    def run_through(e):
        x, scratch, out = random(512), torch.empty(512), torch.empty(512)
        through_memory[(1,)](x, scratch, out, N=512, SYNC=True)
        close(out, x.flip(0), 0)

    yield "add", run_add
    for columns in (5, 300, 1024):
        yield f"softmax {columns}", run_softmax(columns)
    n = 0
    for dtype, precision in (
        (torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"),
        (torch.float32, "tf32x3"), (torch.float32, "ieee"),
    ):  # fmt: skip
        for transposed in ((False, False), (False, True), (True, False), (True, True)):
            shape, tile, warps = (
                ((100, 80, 72), (64, 64, 32), 4),
                ((130, 128, 64), (64, 128, 64), 8),
                ((33, 40, 50), (32, 32, 16), 4),
                ((64, 256, 48), (64, 128, 16), 4),
            )[n % 4]
            n += 1
            name = f"matmul {str(dtype)[6:]} {precision} {transposed} {shape} {tile} {warps} warps"
            yield name, run_matmul(dtype, precision, transposed, shape, tile, warps)
        yield f"scaled matmul {str(dtype)[6:]} {precision}", run_scaled(dtype, precision)
    for n, dtype, warps in ((32, torch.float32, 4), (64, torch.bfloat16, 4), (128, torch.float16, 8)):
        yield f"transpose {n} {str(dtype)[6:]}", run_transpose(n, dtype, warps)
    yield "sort and cumulative sum", run_sort
    yield "atomic counts", run_count
    yield "through memory, with a barrier", run_through


def wrong(arch):
    """Cases in which something must be found."""
    x = torch.randn(4096)

    def race_global(e):
        scratch, out = torch.empty(512), torch.empty(512)
        through_memory[(1,)](x, scratch, out, N=512, SYNC=False)
        finds(e, "race-in-global")

    def race_programs(e):
        all_write[(4,)](torch.empty(1, dtype=torch.int32))
        finds(e, "race-between-programs")

    def race_neighbours(e):
        accumulate[(4,)](x, torch.empty(1024), BLOCK=128)
        finds(e, "race-between-programs")

    def out_of_bounds(e):
        add_unmasked[(4,)](x[:1000].clone(), x[:1000].clone(), torch.empty(1000), 1000, BLOCK=256)
        finds(e, "out-of-bounds")

    def out_of_view(e):
        add_unmasked[(4,)](x[:1000], x[:1000].clone(), torch.empty(1000), 1000, BLOCK=256)
        finds(e, "out-of-bounds")

    def uninitialised(e):
        add[(4,)](torch.empty(1000), x, torch.empty(1000), 1000, BLOCK=256)
        finds(e, "uninitialised-global")

    def misaligned(e):
        promised[(1,)](x, torch.empty(512), 5, N=512)
        finds(e, "misaligned")

    yield "race through global memory", race_global
    yield "race between programs", race_programs
    yield "race between neighbouring programs", race_neighbours
    yield "out of a tensor", out_of_bounds
    yield "out of a view", out_of_view
    yield "memory nobody wrote", uninitialised
    yield "a promise of alignment broken", misaligned


MUTATED = (
    ("barrier", r"\bbar\.sync\s+0;", {"race-in-shared", "async-operand-overwritten", "async-copy-not-awaited"}),
    ("wait for copies", r"\bcp\.async\.wait_group\s+\d+;", {"async-copy-not-awaited"}),
    ("wait for wgmma", r"\bwgmma\.wait_group\.sync\.aligned\s+\d+;", {"wgmma-register-not-awaited", "async-operand-overwritten"}),
    ("proxy fence", r"\bfence\.proxy\.async[.:\w]*;", {"note-no-proxy-fence"}),
)


def mutations(arch):
    """Takes synchronisation out of correct code, one instruction at a time."""
    cases = [(n, run) for n, run in right(arch) if n.startswith(("softmax 1024", "matmul", "transpose 64"))]
    for what, pattern, kinds in MUTATED:
        total, caught, missed = 0, 0, []
        for name, run in cases[:: 3 if what == "barrier" else 2]:
            with driver.emulated(arch) as e:
                e.edit, seen = None, []
                e.edit = lambda ptx, seen=seen: seen.append(ptx) or ptx
                run(e)
                places = [m.span() for m in re.finditer(pattern, seen[0])]
                for i, (begin, end) in enumerate(places):
                    e.clear()
                    e.edit = lambda ptx, b=begin, t=end: ptx[:b] + ptx[t:]
                    try:
                        run(e)
                    except (Failed, RuntimeError):
                        pass
                    total += 1
                    if {f.kind for f in e.findings} & kinds:
                        caught += 1
                    else:
                        missed.append(f"{name} #{i}")
        yield what, total, caught, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=80, choices=[80, 90])
    parser.add_argument("--truncate", action="store_true", help="tensor cores cut off as hardware does")
    parser.add_argument("--mutations", action="store_true", help="take each barrier and wait out as well")
    args = parser.parse_args()
    bad = 0
    for kind, cases in (("right", right), ("wrong", wrong)):
        for name, run in cases(args.arch):
            with driver.emulated(args.arch, Options(seed=1, truncate=args.truncate)) as e:
                try:
                    run(e)
                    if kind == "right":
                        clean(e)
                    said = "ok"
                except Failed as error:
                    said, bad = f"FAILED {error}", bad + 1
            print(f"{said:4} {kind}: {name}", flush=True)
    if args.mutations:
        for what, total, caught, missed in mutations(args.arch):
            print(f"     {what} taken out: {caught} of {total} found; not: {', '.join(missed) or 'none'}", flush=True)
    print(f"sm_{args.arch}: {bad} failed" if bad else f"sm_{args.arch}: all right")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
