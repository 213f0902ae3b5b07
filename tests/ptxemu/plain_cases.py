"""Self-tests of common operations: cases that must run clean, and faults that must be found."""

import torch
import triton

from ptxemu.judge import close, finds
from ptxemu.plain_kernels import (
    Operands,
    accumulate,
    add,
    add_unmasked,
    all_write,
    bundled,
    count,
    low_half,
    matmul,
    promised,
    read_again,
    scaled_matmul,
    softmax,
    sort_and_scan,
    through_memory,
    transpose,
)


def right(arch):
    """Return the cases that must run clean."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator).to(dtype)

    def run_add(e):
        x, y, out = random(1000), random(1000), torch.empty(1000)
        add[(4,)](x, y, out, 1000, BLOCK=256)
        close(out, x + y, 0)

    def run_low_half(e):
        x = torch.randint(-(2**62), 2**62, (128,), generator=generator)
        out = torch.empty(128, dtype=torch.int32)
        low_half[(1,)](x, out, N=128, num_warps=4)
        close(out, x.view(torch.int32)[::2], 0)

    def run_read_again(cache):
        def run(e):
            x, out = random(512), torch.empty(3 * 128)
            read_again[(3,)](x, out, 512, 4, BLOCK=128, CACHE=cache)
            turns = torch.tensor([4.0, 4.0, 5.0])
            close(out.view(3, 128), turns[:, None] * x.view(4, 128).sum(0), 1e-4)
            found, distinct = e.records[-1].run, 0 if cache else 512 * 4 // 32
            assert found.first_sectors == 3 * distinct, found.first_sectors
            assert found.longest_first_sectors == distinct, found.longest_first_sectors
            assert int(found.longest.sum()) > int(found.executed.sum()) / 3, "the longest of three"

        return run

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

    def run_bundled(e):
        x, bias, out = random(2000), random(1000), torch.empty(1000)
        for given, expected in ((bias, x[::2] + bias), (None, x[::2])):
            bundled[(4,)](Operands(x, given, 2), out, 1000, BLOCK=256)
            close(out, expected, 0)

    yield "add", run_add
    yield "the low half of a register", run_low_half
    yield "arguments in a bundle", run_bundled
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
    for n, dtype, warps in (
        (32, torch.float32, 4),
        (64, torch.bfloat16, 4),
        (128, torch.float16, 8),
    ):
        yield f"transpose {n} {str(dtype)[6:]}", run_transpose(n, dtype, warps)
    yield "sort and cumulative sum", run_sort
    yield "atomic counts", run_count
    for cache in ("", ".cg"):
        yield f"read again {cache}", run_read_again(cache)
    yield "through memory, with a barrier", run_through


def wrong(arch):
    """Return the cases with a fault that must be found."""
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
