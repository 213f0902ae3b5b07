"""Launch configurations: frozen, chosen by a pure rule of dtype, sizes and options."""

import dataclasses
from dataclasses import dataclass

import torch
import triton

# Of the rows of distances, or of bits, of one chunk of images. More than the L2 cache holds: chunks
# wait for one another's loops, which costs more than reading the rows from memory.
DENSE_BYTES = 512 * 2**20


# Columns of a kept row of distances are a multiple of it.
PITCH = 16

# Columns of distances whose minimum is kept: the candidates of a row come in whole groups.
GROUP = 16


def host_pitch(tokens: int) -> int:
    """Columns that a kept row of distances takes; in kernels `common.row_pitch`."""
    return triton.cdiv(tokens, PITCH) * PITCH


@dataclass(frozen=True)
class TileConfig:
    """Of the kernels that walk tiles of inner products or distances."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int

    def launch(self, m: str = "BLOCK_M", n: str = "BLOCK_N", d: str = "BLOCK_D") -> dict[str, int]:
        """Keyword arguments of a launch, by a kernel's names for the sides of a tile."""
        blocks = {m: self.block_m, n: self.block_n, d: self.block_d}
        return blocks | {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class TokenConfig:
    """Of the kernels that give each token a lane, and walk its features."""

    block_n: int
    block_d: int
    num_warps: int

    def launch(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {"BLOCK_N": self.block_n, "BLOCK_D": self.block_d, "num_warps": self.num_warps}


@dataclass(frozen=True)
class SelectConfig:
    """Of the selection of neighbours: rows of a program, groups and candidates of a row."""

    block_m: int
    block_g: int
    block_c: int
    num_warps: int


def tile_config(dtype: torch.dtype) -> TileConfig:
    """Tiles of 64 x 128 products; the features of a step fill one swizzled row of shared memory.

    float32 takes half of that: emulated on tensor cores it needs the registers. Without them a
    quarter of the tile is what they hold.
    """
    if dtype == torch.float32 and dot_precision(dtype) == "ieee":
        return TileConfig(block_m=32, block_n=64, block_d=16, num_warps=4, num_stages=3)
    block_d = 16 if dtype == torch.float32 else 128 // dtype.itemsize
    return TileConfig(block_m=64, block_n=128, block_d=block_d, num_warps=8, num_stages=3)


def gram_config(dtype: torch.dtype) -> TileConfig:
    """Square tiles of the distances within an image.

    16-bit operands take 128 x 128: tiles of half the side read the tokens twice as often, and so
    few products would wait for shared memory.
    """
    config = tile_config(dtype)
    if dtype == torch.float32:
        return dataclasses.replace(config, block_n=config.block_m)
    return dataclasses.replace(config, block_m=128, block_n=128)


def merge_config(dtype: torch.dtype) -> TileConfig:
    """Tiles of 64 clusters or tokens by 128 features, summed over `block_d` of the others.

    Without tensor cores half of that.
    """
    if share_precision(dtype) == "ieee" and dtype != torch.bfloat16:
        return TileConfig(block_m=64, block_n=64, block_d=16, num_warps=4, num_stages=3)
    block_d = 32 if dtype == torch.bfloat16 else 16
    return TileConfig(block_m=64, block_n=128, block_d=block_d, num_warps=8, num_stages=3)


def row_tile_config(rows: int) -> TileConfig:
    """Tiles of distances that are read, not made: few rows, all of a tile in registers."""
    return TileConfig(block_m=rows, block_n=128, block_d=16, num_warps=4, num_stages=2)


def select_config(groups: int, k: int) -> SelectConfig:
    """A program is one warp, which needs no barrier; several rows hide the latency of each."""
    block_g = max(32, triton.next_power_of_2(groups))
    block_c = GROUP * max(2, triton.next_power_of_2(min(k, groups)))
    rows = max(1, min(4, 512 // max(block_g, block_c)))
    return SelectConfig(rows, block_g, block_c, num_warps=1)


def token_config(dtype: torch.dtype) -> TokenConfig:
    """32 lanes of 16 bytes: a warp reads its part of a row in one widest load."""
    return TokenConfig(block_n=16, block_d=32 * 16 // dtype.itemsize, num_warps=4)


def most_registers(x: torch.Tensor) -> int | None:
    """Of a thread of four warps that reads features in wide loads; None where loads are narrow.

    Unbounded, the assembler spills a few for a fifth program of a multiprocessor; features that
    come one at a time take more.
    """
    aligned = x.storage_offset() * x.itemsize % 16 == 0 and x.stride(0) % 16 == 0
    return 128 if aligned and x.shape[1] % 16 == 0 and x.stride(1) == 1 else None


def row_config(tokens: int) -> TokenConfig:
    """One program holds a vector over all tokens of an image."""
    block = max(16, triton.next_power_of_2(tokens))
    return TokenConfig(block_n=block, block_d=1, num_warps=min(16, max(4, block // 256)))


def image_config(tokens: int) -> TokenConfig:
    """As `row_config`, of more warps: each waits for its loads of a row one after the other."""
    config = row_config(tokens)
    return dataclasses.replace(config, num_warps=min(16, max(4, config.block_n // 64)))


def claim_config(tokens: int) -> TokenConfig:
    """One program walks the tokens of an image; 8 to a lane, and all in one step where they fit."""
    return row_config(min(tokens, 4096))


def adjacency_images(images: int, tokens: int) -> int:
    """How many images share a chunk whose neighbours are kept as bits; arguments as below."""
    return _fitting(images, 4 * tokens * triton.cdiv(tokens, 32))


def dense_images(images: int, tokens: int, limit: int) -> int:
    """How many images share a chunk whose rows of distances are kept; 0 where none are.

    Args:
        images: of the batch.
        tokens: most of an image.
        limit: most tokens of an image whose rows are kept.
    """
    if tokens > limit:
        return 0
    return _fitting(images, 4 * tokens * tokens)


def _fitting(images: int, size: int) -> int:
    """Images of a chunk, of `size` bytes each.

    In fours where they can be: what is cut off then begins at a multiple of 16 bytes, as the whole
    does, and the kernels are not compiled anew for it.
    """
    fit = DENSE_BYTES // max(1, size)
    return max(1, min(images, fit if fit < 4 else fit // 4 * 4))


def share_precision(dtype: torch.dtype) -> str:
    """How float32 shares are multiplied with tokens that are no bfloat16; float16 fits in tf32."""
    return "tf32x3" if dtype == torch.float16 else dot_precision(dtype)


def dot_precision(dtype: torch.dtype) -> str:
    """How float32 inner products are made, by `torch.get_float32_matmul_precision()`."""
    if dtype != torch.float32:
        return "ieee"
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[
        torch.get_float32_matmul_precision()
    ]
