"""Computes the GPU memory that training of SeTokim needs, without allocating weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn
from transformers import LlamaConfig, PretrainedConfig

from setok_kernels.config import check_count
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.training.sharding import blocks
from setokim.vlm.configuration_setokim import SetokimConfig
from setokim.vlm.modeling_setokim import SetokimModel

_FLOAT32 = 4  # bytes
# Logits, log-probabilities, and the gradients of both.
_LOGIT_COPIES = 4
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


@dataclass(frozen=True)
class MemoryPlan:
    """Memory plan: numbers of parameters of the whole model, and bytes on each GPU.

    Attributes:
        gpus: number of GPUs.
        parameters: number of parameters by part: "llm", "encoder", "merger", "detokenizer",
            "heads".
        learning: number of trainable parameters by part.
        weights: bytes of the float32 weights.
        gradients: bytes of the float32 gradients.
        moments: bytes of the optimizer state.
        averages: bytes of the averaged weights.
        gathered: bytes of copies of weights: gathered blocks with "fsdp", those of autocast with
            "ddp".
        activations: estimated bytes of the activations.
    """

    gpus: int
    parameters: dict[str, int]
    learning: dict[str, int]
    weights: int
    gradients: int
    moments: int
    averages: int
    gathered: int
    activations: int

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes by name, in the order of the attributes."""
        names = ("weights", "gradients", "moments", "averages", "gathered", "activations")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """Bytes on each GPU in total."""
        return sum(self.bytes.values())


def vicuna_7b() -> LlamaConfig:
    """Return the configuration of lmsys/vicuna-7b-v1.5."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        max_position_embeddings=4096,
    )


def paper_setok() -> SetokConfig:
    """Return the tokenizer of configs/*_paper.yaml: SigLIP so400m at 384 px, and codes."""
    configs = Path(__file__).parents[1] / "configs"
    one, codes = (
        yaml.safe_load((configs / f"{name}_paper.yaml").read_text(encoding="utf-8"))
        for name in ("stage1", "codes")
    )
    fields = one["model"] | {name: codes[name] for name in ("code_dim", "code_width")}
    return SetokConfig(**fields | {"encoder": "hf", "encoder_config": dict(_SIGLIP_SO400M)})


def combine(setok: SetokConfig, llm: PretrainedConfig, **fields) -> SetokimConfig:
    """Combine configurations for a plan; the image tokens follow the text tokens.

    Args:
        setok: configuration of the visual tokenizer.
        llm: configuration of the language model.
        **fields: further fields of `SetokimConfig`.
    """
    names = ("image_token_id", "image_start_id", "image_end_id", "segment_id")
    ids = {name: llm.vocab_size + number for number, name in enumerate(names)}
    return SetokimConfig(setok, llm, **ids, **fields)


def plan(
    config: SetokimConfig,
    gpus: int,
    batch_size: int,
    length: int,
    parallel: str = "fsdp",
    precision: str = "bf16",
    optimizer_bytes: int = 8,
    checkpointing: bool = True,
    averages: bool = True,
    pictures: int = 1,
    freeze: Callable[[SetokimModel], None] | None = None,
) -> MemoryPlan:
    """Compute the memory of a GPU in the middle of a training step.

    With P parameters, L of them trainable, on G GPUs:

    * weights: 4 P / G bytes, moments: `optimizer_bytes` L / G, averages: 4 L / G with "fsdp"; with
      "ddp" not divided by G.
    * gradients: 4 L / G with "fsdp", which reduces them after each batch. With "ddp" 4 L, and the
      same again for the communication buckets if there are several GPUs.
    * gathered, with "fsdp": 4 bytes for each parameter outside of blocks, 4 more if it is
      trainable; and twice the largest block with float32 gradients, because the next block is
      gathered while one runs. Weights of blocks of transformers have 2 bytes with "bf16". With
      "ddp" and "bf16": 2 L for the copies of autocast.
    * activations, of layers with width w and inner width i: 10 w + 4 i numbers at each position of
      a layer of the language model, whose MLP is gated, and 10 w + 2 i in other layers. No
      attention matrix is stored. With checkpointing only the inputs of the language model's layers
      (w) are stored, and one layer in full. Encoder, merger and detokenizer count if they are
      trained. A number has 2 bytes with "bf16", else 4. Four float32 copies of the logits are
      added, as if all positions had labels. The heads' activations and the allocator's overhead
      are not included.

    Args:
        config: configuration of the model, which is built on the meta device.
        gpus: number of GPUs.
        batch_size: number of rows in the batch of one GPU.
        length: number of tokens in a row.
        parallel: distribution of the weights, "fsdp" or "ddp".
        precision: number format, "no" or "bf16".
        optimizer_bytes: bytes of optimizer state for each trainable parameter; 8 for the two
            moments of AdamW.
        checkpointing: flag of activation checkpointing of the language model.
        averages: flag of averaged weights.
        pictures: number of images in each row.
        freeze: function that freezes parameters of the model; None to train all.

    Returns:
        Memory plan of one GPU.

    Raises:
        TypeError, ValueError: an argument is not valid.
    """
    for name, count in (
        ("gpus", gpus),
        ("batch_size", batch_size),
        ("length", length),
    ):
        check_count(name, count)
    for name, value, known in (
        ("parallel", parallel, ("fsdp", "ddp")),
        ("precision", precision, ("no", "bf16")),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected {' or '.join(known)}, got {value!r}")
    for name, number in (("optimizer_bytes", optimizer_bytes), ("pictures", pictures)):
        if number < 0:
            raise ValueError(f"{name}: expected at least 0, got {number}")
    with torch.device("meta"):
        model = SetokimModel(config)
    if freeze is not None:
        freeze(model)
    parameters = {name: _count(part) for name, part in _parts(model).items()}
    learning = {name: _count_trainable(part) for name, part in _parts(model).items()}
    total, trainable = sum(parameters.values()), sum(learning.values())
    sharded, half = parallel == "fsdp", precision == "bf16"
    shards = gpus if sharded else 1
    gradients = math.ceil(_FLOAT32 * trainable / shards)
    if sharded:
        gathered = _gathered(model, half)
    else:
        gathered = 2 * trainable if half else 0
        if gpus > 1:
            gradients *= 2
    return MemoryPlan(
        gpus,
        parameters,
        learning,
        weights=math.ceil(_FLOAT32 * total / shards),
        gradients=gradients,
        moments=math.ceil(optimizer_bytes * trainable / shards),
        averages=math.ceil(_FLOAT32 * trainable / shards) if averages else 0,
        gathered=gathered,
        activations=_activations(
            model, learning, batch_size, length, pictures, 2 if half else 4, checkpointing
        ),
    )


def _parts(model: SetokimModel) -> dict[str, list[nn.Parameter]]:
    """Return the parameters by part; "heads" has those of no other part."""
    setok = model.setok
    parts = {
        "llm": list(model.llm.parameters()),
        "encoder": list(setok.encoder.parameters()),
        "merger": [*setok.clustering.parameters(), *setok.merger.parameters()],
        "detokenizer": list(setok.detokenizer.parameters()),
    }
    taken = {id(p) for part in parts.values() for p in part}
    return parts | {"heads": [p for p in model.parameters() if id(p) not in taken]}


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _count_trainable(parameters: list[nn.Parameter]) -> int:
    return _count([p for p in parameters if p.requires_grad])


def _gathered(model: SetokimModel, half: bool) -> int:
    taken: set[int] = set()
    largest = 0
    for part in blocks(model):
        own = [p for p in part.parameters() if id(p) not in taken]
        taken |= {id(p) for p in own}
        narrow = half and type(part).__module__.startswith("transformers.")
        width = 2 if narrow else _FLOAT32
        largest = max(largest, width * _count(own) + _FLOAT32 * _count_trainable(own))
    rest = [p for p in model.parameters() if id(p) not in taken]
    return 2 * largest + _FLOAT32 * (_count(rest) + _count_trainable(rest))


def _activations(
    model: SetokimModel,
    learning: dict[str, int],
    batch_size: int,
    length: int,
    pictures: int,
    width: int,
    checkpointing: bool,
) -> int:
    llm = model.config.llm_config().get_text_config()
    hidden, layers = llm.hidden_size, llm.num_hidden_layers
    # None stands for 4 · width in GPT-2.
    inner = getattr(llm, "intermediate_size", None) or 4 * hidden
    layer = 10 * hidden + 4 * inner
    positions = batch_size * length
    numbers = positions * (layers * hidden + layer if checkpointing else layers * layer)
    numbers += batch_size * pictures * _visual_numbers(model, learning)
    vocabulary = max(llm.vocab_size, 1 + max(model.config.special_ids))
    return width * numbers + _LOGIT_COPIES * _FLOAT32 * positions * vocabulary


def _visual_numbers(model: SetokimModel, learning: dict[str, int]) -> int:
    """Return the number of stored activations of one image in the trained visual parts."""
    setok, config = model.setok, model.setok.config
    patches = math.prod(setok.encoder.grid)
    numbers = 0
    if learning["encoder"]:
        vit = setok.encoder.backbone.config
        numbers += patches * vit.num_hidden_layers * _layer(vit.hidden_size, vit.intermediate_size)
    if learning["merger"] or learning["encoder"]:
        # An image has at most as many tokens as patches.
        layers = config.intra_layers + config.inter_layers
        numbers += patches * layers * _layer(config.width, int(config.mlp_ratio * config.width))
    if learning["detokenizer"]:
        layers = config.decoder_cross_layers + config.decoder_layers
        inner = int(config.mlp_ratio * config.decoder_width)
        numbers += math.prod(config.decoder_grid) * layers * _layer(config.decoder_width, inner)
    return numbers


def _layer(width: int, inner: int) -> int:
    """Return the number of activations at each position of a layer without gated MLP."""
    return 10 * width + 2 * inner
