"""Launch configurations: frozen dataclasses, chosen by dtype, sizes and options alone."""

import dataclasses
from dataclasses import dataclass

import torch
import triton

# Maximum bytes of the distance rows, or adjacency bits, of one chunk of images. More than the L2
# cache: waiting for the loops of many small chunks costs more than reading the rows from memory.
DENSE_BYTES = 512 * 2**20

# Programs that fill the multiprocessors of a device.
PROGRAMS = 264

# Maximum tokens of a program of the features' gradient.
SLICE_TOKENS = 1024

# Columns of a kept distance row, rounded up to a multiple of this.
PITCH = 16

# Number of columns with one kept minimum; the candidates of a row are whole groups.
GROUP = 16

# Rows of a block of cluster rows beyond its power of two: 64 clusters have a residual, too.
REST = 16


def host_pitch(tokens: int) -> int:
    """Return the columns of a kept distance row; `common.row_pitch` is the same in kernels."""
    return triton.cdiv(tokens, PITCH) * PITCH


@dataclass(frozen=True)
class TileConfig:
    """Configuration of kernels that loop over tiles of inner products or distances."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int

    def launch(self, m: str = "BLOCK_M", n: str = "BLOCK_N", d: str = "BLOCK_D") -> dict[str, int]:
        """Return the keyword arguments of a launch; m, n, d are the kernel's names of the sides."""
        blocks = {m: self.block_m, n: self.block_n, d: self.block_d}
        return blocks | {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class TokenConfig:
    """Configuration of kernels that give each token a lane and loop over its features."""

    block_n: int
    block_d: int
    num_warps: int

    def launch(self) -> dict[str, int]:
        """Return the keyword arguments of a launch."""
        return {"BLOCK_N": self.block_n, "BLOCK_D": self.block_d, "num_warps": self.num_warps}


@dataclass(frozen=True)
class SelectConfig:
    """Configuration of the neighbour selection: rows of a program, groups and candidates."""

    block_m: int
    block_g: int
    block_c: int
    num_warps: int


@dataclass(frozen=True)
class SliceConfig:
    """Configuration of the gradient of the features, by slices of one cache line of each token.

    Attributes:
        block_n: tokens of a block.
        block_c: seeds of a block.
        block_d: features of a slice.
        num_warps: warps of a program.
        registers: limit of the registers of a thread, or None.
    """

    block_n: int
    block_c: int
    block_d: int
    num_warps: int
    registers: int | None = None

    def launch(self) -> dict[str, int | None]:
        """Return the keyword arguments of a launch."""
        blocks = {"BLOCK_N": self.block_n, "BLOCK_C": self.block_c, "BLOCK_D": self.block_d}
        options = {"num_warps": self.num_warps, "num_stages": 1, "maxnreg": self.registers}
        return blocks | options

    def parts(self, slices: int, tokens: int) -> int:
        """Return the parts of an image that has a program each in every slice.

        A part reads the whole slice, so there are no more than fill the multiprocessors, and than
        keep the programs of long images short.
        """
        blocks = triton.cdiv(tokens, self.block_n)
        wanted = max(triton.cdiv(PROGRAMS, slices), triton.cdiv(tokens, SLICE_TOKENS))
        return max(1, min(blocks, wanted))


def tile_config(dtype: torch.dtype) -> TileConfig:
    """Return tiles of 64 x 128; one step's features fill one swizzled row of shared memory.

    float32 takes half a row, because its emulation on tensor cores needs registers. Without tensor
    cores (ieee) the registers hold a quarter of the tile.
    """
    if dtype == torch.float32 and dot_precision(dtype) == "ieee":
        return TileConfig(block_m=32, block_n=64, block_d=16, num_warps=4, num_stages=3)
    block_d = 16 if dtype == torch.float32 else 128 // dtype.itemsize
    return TileConfig(block_m=64, block_n=128, block_d=block_d, num_warps=8, num_stages=3)


def gram_config(dtype: torch.dtype) -> TileConfig:
    """Return square tiles for the distances within an image.

    16-bit operands take 128 x 128: smaller tiles would read the tokens twice as often and wait for
    shared memory.
    """
    config = tile_config(dtype)
    if dtype == torch.float32:
        return dataclasses.replace(config, block_n=config.block_m)
    return dataclasses.replace(config, block_m=128, block_n=128)


def merge_config(dtype: torch.dtype) -> TileConfig:
    """Return tiles of 64 clusters or tokens by 128 features, summed over steps of `block_d`.

    Without tensor cores the tile is half as wide.
    """
    if coefficient_precision(dtype) == "ieee" and dtype != torch.bfloat16:
        return TileConfig(block_m=64, block_n=64, block_d=16, num_warps=4, num_stages=3)
    block_d = 32 if dtype == torch.bfloat16 else 16
    return TileConfig(block_m=64, block_n=128, block_d=block_d, num_warps=8, num_stages=3)


def shares_config(dtype: torch.dtype) -> TileConfig:
    """Return tiles of 64 rows by 128 features, summed over steps of `block_d` tokens.

    16-bit tokens take longer steps: 64 in bfloat16, and in float16, whose shares are float32, as
    many as the registers hold.
    """
    block_d = {torch.bfloat16: 64, torch.float16: 32}
    config = merge_config(dtype)
    return dataclasses.replace(config, block_d=block_d.get(dtype, config.block_d))


def unmerge_config(dtype: torch.dtype) -> TileConfig:
    """Return tiles of 64 tokens by 128 features, summed over steps of `block_d` rows.

    16-bit tokens take 64 clusters in one step. With bfloat16 four warps hold the split masks.
    """
    config = merge_config(dtype)
    if dtype == torch.float32:
        return config
    num_warps = 4 if dtype == torch.bfloat16 else 8
    return dataclasses.replace(config, block_d=64, num_warps=num_warps)


def feature_step(tiles: int, blocks: int) -> int:
    """Return the feature blocks of a program, of all `blocks` of each of the token tiles.

    Each program prepares the masks of its tokens, but a small batch needs many programs.
    """
    programs = max(1, min(blocks, triton.cdiv(256, max(1, tiles))))
    return max(1, triton.cdiv(blocks, programs))


def products_config(dtype: torch.dtype) -> TileConfig:
    """Return tiles of 64 tokens by 64 rows, and `REST` more, summed over steps of features.

    Without tensor cores both are half of that.
    """
    config = tile_config(dtype)
    if dtype == torch.float32 and dot_precision(dtype) == "ieee":
        return dataclasses.replace(config, block_n=32)
    return dataclasses.replace(config, block_n=64, num_warps=4)


def sums_config(dtype: torch.dtype) -> TileConfig:
    """Return tiles of 64 seeds and 128 features of the sums over the tokens.

    Only bfloat16 gradients go to the tensor cores as they are.
    """
    if dtype == torch.bfloat16:
        return TileConfig(block_m=64, block_n=128, block_d=64, num_warps=4, num_stages=2)
    return merge_config(dtype)


def slice_config(dtype: torch.dtype) -> SliceConfig:
    """Return slices of 128 bytes.

    One program of bfloat16 fills a multiprocessor: the slice of its image then has the L1 cache to
    itself. Without the explicit limit, that of its warps, the assembler takes fewer registers and
    has fewer loads in flight. Products of float32 take more registers, and those without tensor
    cores most.
    """
    block_d = 128 // dtype.itemsize
    if dtype == torch.bfloat16:
        return SliceConfig(block_n=128, block_c=64, block_d=block_d, num_warps=16, registers=128)
    if coefficient_precision(dtype) == "ieee":
        return SliceConfig(block_n=32, block_c=16, block_d=block_d, num_warps=8)
    return SliceConfig(block_n=64, block_c=32, block_d=block_d, num_warps=8)


def row_tile_config(rows: int) -> TileConfig:
    """Return tiles of distances that are read, not computed: few rows, all in registers."""
    return TileConfig(block_m=rows, block_n=128, block_d=16, num_warps=4, num_stages=2)


def select_config(groups: int, k: int) -> SelectConfig:
    """Return one warp per program, which needs no barrier; several rows hide the latency."""
    block_g = max(32, triton.next_power_of_2(groups))
    block_c = GROUP * max(2, triton.next_power_of_2(min(k, groups)))
    rows = max(1, min(4, 512 // max(block_g, block_c)))
    return SelectConfig(rows, block_g, block_c, num_warps=1)


def keep_config(slots: int) -> TokenConfig:
    """Return rows of candidates for one warp, which needs no barrier."""
    return TokenConfig(block_n=max(1, 512 // slots), block_d=1, num_warps=1)


def token_config(dtype: torch.dtype) -> TokenConfig:
    """Return blocks of 32 lanes x 16 bytes: a warp reads them in one widest load."""
    return TokenConfig(block_n=16, block_d=32 * 16 // dtype.itemsize, num_warps=4)


def max_registers(x: torch.Tensor) -> int | None:
    """Return the register limit of kernels with wide feature loads, or None for narrow loads.

    Without a limit the assembler spills a few registers to fit a fifth program on a multiprocessor.
    Narrow loads need more registers.
    """
    aligned = x.storage_offset() * x.itemsize % 16 == 0 and x.stride(0) % 16 == 0
    return 128 if aligned and x.shape[1] % 16 == 0 and x.stride(1) == 1 else None


def row_config(tokens: int) -> TokenConfig:
    """Return a block over all tokens of an image."""
    block = max(16, triton.next_power_of_2(tokens))
    return TokenConfig(block_n=block, block_d=1, num_warps=min(16, max(4, block // 256)))


def image_config(tokens: int) -> TokenConfig:
    """Return `row_config` with more warps, because each warp loads its part of a row serially."""
    config = row_config(tokens)
    return dataclasses.replace(config, num_warps=min(16, max(4, config.block_n // 64)))


def claim_config(tokens: int) -> TokenConfig:
    """Return blocks of up to 4096 tokens of an image, 8 per lane, in one step if they fit."""
    return row_config(min(tokens, 4096))


def adjacency_images(images: int, tokens: int) -> int:
    """Return the number of images of a chunk with adjacency bits; see `dense_images`."""
    return _fitting(images, 4 * tokens * triton.cdiv(tokens, 32))


def dense_images(images: int, tokens: int, limit: int) -> int:
    """Return the number of images of a chunk with kept distance rows; 0 if none are kept.

    Args:
        images: number of images of the batch.
        tokens: maximum number of tokens of an image.
        limit: maximum number of tokens of an image with kept rows.
    """
    if tokens > limit:
        return 0
    return _fitting(images, 4 * tokens * tokens)


def _fitting(images: int, size: int) -> int:
    """Return the number of images of a chunk, for images of `size` bytes.

    A multiple of four if possible: slices of the batch are then aligned to 16 bytes like the whole,
    and no kernel is compiled anew.
    """
    fit = DENSE_BYTES // max(1, size)
    return max(1, min(images, fit if fit < 4 else fit // 4 * 4))


def coefficient_precision(dtype: torch.dtype) -> str:
    """Return the precision of float32 coefficients times non-bfloat16 tokens; float16 fits tf32."""
    return "tf32x3" if dtype == torch.float16 else dot_precision(dtype)


def dot_precision(dtype: torch.dtype) -> str:
    """Return the precision of inner products, from `torch.get_float32_matmul_precision()`."""
    if dtype != torch.float32:
        return "ieee"
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[
        torch.get_float32_matmul_precision()
    ]
