"""Self-tests of descriptors: copies and products of tiles, and faults that must be found."""

import contextlib
import re

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from ptxemu import descriptor_kernels as kernels
from ptxemu.judge import Failed, close, finds, same


def tiles(tensor: torch.Tensor, *box: int, rows: int | None = None) -> TensorDescriptor:
    """Return a descriptor of a tensor, optionally with more rows than the tensor."""
    shape = [rows or tensor.shape[0], *tensor.shape[1:]]
    return TensorDescriptor(tensor, shape, list(tensor.stride()), list(box))


def random(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def copy(dtype, shape, box, scaled):
    """Both ways through shared memory; tiles reach out of the tensor on two sides."""
    x, out = random(*shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    grid = tuple(triton.cdiv(n, b) for n, b in zip(shape, box, strict=True))
    kernels.copy_tiles[grid](tiles(x, *box), tiles(out, *box), 2.0, *box, SCALED=scaled)
    same(out, 2 * x if scaled else x)


def copy_blocks(emulator):
    x, out = random(3, 13, 32), torch.empty(3, 20, 32)
    kernels.copy_blocks[(3,)](tiles(x, 1, 8, 32), tiles(out, 1, 8, 32), BN=8)
    expected = torch.zeros(3, 16, 32)
    expected[:, 1:9], expected[:, 8:14] = x[:, :8], x[:, 7:]
    same(out[:, :8], torch.cat([torch.zeros(3, 1, 32), x[:, :7]], 1))
    same(out[:, 8:16], torch.cat([x[:, 7:], torch.zeros(3, 2, 32)], 1))


def gram(dtype, precision, warps, rows=150, dim=200, tile=128, deep=0):
    x, out = random(rows, dim, dtype=dtype), torch.empty(rows, rows)
    deep = deep or 128 // dtype.itemsize
    blocks = triton.cdiv(rows, tile)
    kernels.gram[(blocks, blocks)](
        tiles(x, tile, deep), out, rows, dim,
        PRECISION=precision, BM=tile, BK=deep, num_warps=warps, num_stages=3,
    )  # fmt: skip
    products(out, x, x.T, precision)


def products(out, a, b, precision):
    truth, bound = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    close((out - truth) / bound, torch.zeros(()), 2.0**-10 if precision == "tf32" else 2.0**-20)


def matmul(dtype, precision):
    a, b, out = random(100, 136, dtype=dtype), random(136, 200, dtype=dtype), torch.empty(100, 200)
    kernels.matmul_tiles[(2, 2)](
        tiles(a, 64, 32), tiles(b, 32, 128), tiles(out, 64, 128), 136,
        PRECISION=precision, BM=64, BN=128, BK=32,
    )  # fmt: skip
    products(out, a, b, precision)


def gram_of_own(emulator):
    x, out = random(100, 136, dtype=torch.bfloat16), torch.empty(100, 100)
    triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8))
    kernels.gram_of_own[(2, 2)](x, out, 100, 136, BM=64, BK=64)
    products(out, x, x.T, "ieee")


def right(arch):
    """Return the cases that must run clean."""
    for dtype, shape, box in (
        (torch.bfloat16, (70, 72), (64, 64)), (torch.float32, (33, 40), (32, 32)),
        (torch.bfloat16, (40, 40), (16, 32)), (torch.float16, (40, 24), (32, 16)),
        (torch.float32, (20, 12), (16, 8)), (torch.float32, (20, 140), (16, 64)),
    ):  # fmt: skip
        for scaled in (False, True):
            name = f"copy of tiles {str(dtype)[6:]} {shape} {box}{' scaled' if scaled else ''}"
            yield name, lambda e, given=(dtype, shape, box, scaled): copy(*given)
    yield "copy of blocks of three dimensions", copy_blocks
    for dtype, precision, warps in (
        (torch.bfloat16, "ieee", 8), (torch.bfloat16, "ieee", 4), (torch.float16, "ieee", 8),
        (torch.float32, "tf32", 8), (torch.float32, "tf32x3", 8), (torch.float32, "ieee", 8),
    ):  # fmt: skip
        name = f"gram {str(dtype)[6:]} {precision} {warps} warps"
        yield name, lambda e, given=(dtype, precision, warps): gram(*given)
    yield "gram of tiles of 64 x 32", lambda e: gram(torch.bfloat16, "ieee", 4, 70, 72, 64, 32)
    for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "tf32")):
        name = f"matmul of tiles {str(dtype)[6:]} {precision}"
        yield name, lambda e, given=(dtype, precision): matmul(*given)
    yield "gram of a descriptor of its own", gram_of_own


def stops(run, word):
    """Return a launch that must be rejected, with a word of the message."""
    try:
        run()
    except RuntimeError as error:
        if word not in str(error):
            raise Failed(f"refused by {error}, not by {word}") from error
    else:
        raise Failed(f"not refused by {word}")


def edited(emulator, *changes):
    """Make the emulator run edited PTX; each edit must apply."""

    def edit(ptx):
        for pattern, to in changes:
            ptx, times = re.subn(pattern, to, ptx, count=1)
            if not times:
                raise AssertionError(f"no {pattern} in the PTX")
        return ptx

    emulator.edit = edit


WAIT = r"(?s)mbarrier\.try_wait\S+ complete, \[(%r\d+)\], %r\d+;\s*@!complete bra\.uni waitLoop;"
EXPECT = r"@%p\d+ (mbarrier\.arrive\.expect_tx\S+ _, \[%r\d+\], )8192;"


def wrong(arch):
    """Return the cases with a fault that must be found."""

    def too_many_rows(e):
        x, out = random(60, 64), torch.empty(64, 64)
        whole = tiles(x, 32, 32, rows=64)
        kernels.copy_tiles[(2, 2)](whole, tiles(out, 32, 32), 1.0, 32, 32, SCALED=False)
        finds(e, "out-of-bounds")

    yield "a descriptor of more rows than the tensor has", too_many_rows
    if arch < 90:
        return

    def other_strides(e):
        x, out = random(64, 64), torch.empty(64, 64)
        bad = tiles(x, 32, 32)
        bad.strides = [63, 1]
        launch = kernels.copy_tiles[(2, 2)]
        stops(lambda: launch(bad, tiles(out, 32, 32), 1.0, 32, 32, SCALED=False), "strides")

    yield "a stride of no multiple of 16 bytes", other_strides

    def changed(kind, *changes, scaled=False):
        """Return a copy of a tile of 8192 bytes by a modified kernel."""

        def run(e):
            edited(e, *changes)
            with contextlib.suppress(Failed, RuntimeError):
                copy(torch.bfloat16, (64, 64), (64, 64), scaled)
            finds(e, *kind.split(","))

        return run

    yield "a copy not waited for", changed("async-copy-not-awaited", (WAIT, ""), scaled=True)
    early = r"mbarrier.try_wait.parity.shared::cta.b64 complete, [\1], 1;"
    yield (
        "a wait for the phase before",
        changed("async-copy-not-awaited", (WAIT, early), scaled=True),
    )
    late = early + "\n@!complete bra.uni waitLoop;"
    yield (
        "a wait for the phase after",
        changed("hang", (WAIT, r"\g<0>\n} { .reg .pred complete; waitLoop: " + late)),
    )
    yield "fewer bytes expected than come", changed("hang", (EXPECT, r"\g<1>4096;"))
    yield "more bytes expected than come", changed("hang", (EXPECT, r"\g<1>8320;"))
    yield "nobody arrives", changed("hang", (EXPECT, ""))
    inval = r"mbarrier\.inval\.shared::cta\.b64 (\[%r\d+\]);"
    store = r"st.shared.b32 \1, 0;"
    yield "a store into an mbarrier", changed("mbarrier-misused", (inval, store))
    yield (
        "an mbarrier gone before its copy",
        changed("mbarrier-misused", (WAIT, r"mbarrier.inval.shared::cta.b64 [\1];")),
    )
    fence = r"fence\.proxy\.async\.shared::cta;"
    yield "no fence between the proxies", changed("no-proxy-fence", (fence, ""), scaled=True)
    wait, commit = r"cp\.async\.bulk\.wait_group\.read\s+0;", r"cp\.async\.bulk\.commit_group;"
    yield "a store not waited for", changed("async-copy-not-awaited", (wait, ""))
    yield "a store not committed", changed("async-copy-not-awaited", (commit, ""))
    load = r"(cp\.async\.bulk\.tensor\.2d\.shared\S+ \[%r\d+)\]"
    yield "a tile at no multiple of 128 bytes", changed("misaligned", (load, r"\1+64]"))
