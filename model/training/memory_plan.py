"""How much memory training SeTokim takes on each GPU, without making a single weight."""

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
# The logits, their logarithms, and the gradients of both.
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
    """Parameters of the whole model, and bytes of each GPU.

    Attributes:
        gpus: that share the work.
        parameters: of each part: "llm", "encoder", "merger", "detokenizer", "heads".
        learning: of these, how many learn.
        weights: bytes of the float32 weights.
        gradients: bytes, float32.
        moments: bytes of the optimizer.
        averages: bytes of the averaged weights.
        gathered: bytes of copies: with "fsdp" what is whole while it runs, with "ddp" autocast's.
        activations: bytes, an estimate.
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
        """What takes memory, in the order of the attributes."""
        names = ("weights", "gradients", "moments", "averages", "gathered", "activations")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """Bytes of each GPU."""
        return sum(self.bytes.values())


def vicuna_7b() -> LlamaConfig:
    """The shape of lmsys/vicuna-7b-v1.5."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        max_position_embeddings=4096,
    )


def paper_setok() -> SetokConfig:
    """The shape of what configs/stage1_paper.yaml trains, around SigLIP so400m at 384 px."""
    path = Path(__file__).parents[1] / "configs" / "stage1_paper.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    return SetokConfig(**fields | {"encoder": "hf", "encoder_config": dict(_SIGLIP_SO400M)})


def combine(setok: SetokConfig, llm: PretrainedConfig, **fields) -> SetokimConfig:
    """A configuration in which the tokens of pictures follow the words, for a plan.

    Args:
        setok: of the visual tokenizer.
        llm: of the language model.
        **fields: of `SetokimConfig`.
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
    """Counts what a GPU holds in the middle of a training step.

    With P parameters, L of them learning, on G GPUs:

    * weights 4 P / G, moments `optimizer_bytes` L / G, averages 4 L / G with "fsdp"; not divided
      with "ddp".
    * gradients 4 L / G with "fsdp", which exchanges them after each batch. With "ddp" 4 L, and as
      much again for the buckets of the exchange where there are several GPUs.
    * gathered with "fsdp": what is in no block, whole, 4 bytes each and 4 more where it learns; and
      twice the largest block, as the next one comes while one runs, with gradients in float32. The
      weights of blocks of transformers have 2 bytes with "bf16". With "ddp" and "bf16" autocast's
      copies, 2 L.
    * activations, of layers of width w with an inner width of i, and gated MLPs in the language
      model: 10 w + 4 i numbers at each place of a layer of the language model, 10 w + 2 i of the
      others. Attention keeps no matrix. With checkpointing only the inputs of the language model's
      layers (w) are kept, and one layer in full. Encoder, merger and detokenizer count where they
      learn. A number has 2 bytes with "bf16", else 4. To this come 4 float32 copies of the logits,
      as if all places were learnt. The heads' and the allocator's own share are left out.

    Args:
        config: of the model, which is built on the meta device.
        gpus: that share the work.
        batch_size: of one GPU.
        length: of the rows, in tokens.
        parallel: "fsdp" or "ddp".
        precision: "no" or "bf16".
        optimizer_bytes: for each parameter that learns; 8 for the two moments of AdamW.
        checkpointing: compute activations of the language model again going back.
        averages: keep averaged weights.
        pictures: in each row.
        freeze: makes the model's parameters that do not learn need no gradient; None for none.

    Raises:
        TypeError, ValueError: an argument does not fit.
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
    learning = {name: _learning(part) for name, part in _parts(model).items()}
    all_parameters, learns = sum(parameters.values()), sum(learning.values())
    sharded, half = parallel == "fsdp", precision == "bf16"
    share = gpus if sharded else 1
    gradients = math.ceil(_FLOAT32 * learns / share)
    if sharded:
        gathered = _gathered(model, half)
    else:
        gathered = 2 * learns if half else 0
        if gpus > 1:
            gradients *= 2
    return MemoryPlan(
        gpus,
        parameters,
        learning,
        weights=math.ceil(_FLOAT32 * all_parameters / share),
        gradients=gradients,
        moments=math.ceil(optimizer_bytes * learns / share),
        averages=math.ceil(_FLOAT32 * learns / share) if averages else 0,
        gathered=gathered,
        activations=_activations(
            model, learning, batch_size, length, pictures, 2 if half else 4, checkpointing
        ),
    )


def _parts(model: SetokimModel) -> dict[str, list[nn.Parameter]]:
    """Parameters by part; all that is in no other belongs to the heads."""
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


def _learning(parameters: list[nn.Parameter]) -> int:
    return _count([p for p in parameters if p.requires_grad])


def _gathered(model: SetokimModel, half: bool) -> int:
    taken: set[int] = set()
    largest = 0
    for part in blocks(model):
        own = [p for p in part.parameters() if id(p) not in taken]
        taken |= {id(p) for p in own}
        narrow = half and type(part).__module__.startswith("transformers.")
        width = 2 if narrow else _FLOAT32
        largest = max(largest, width * _count(own) + _FLOAT32 * _learning(own))
    rest = [p for p in model.parameters() if id(p) not in taken]
    return 2 * largest + _FLOAT32 * (_count(rest) + _learning(rest))


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
    # GPT-2's None stands for that, too.
    inner = getattr(llm, "intermediate_size", None) or 4 * hidden
    layer = 10 * hidden + 4 * inner
    places = batch_size * length
    numbers = places * (layers * hidden + layer if checkpointing else layers * layer)
    numbers += batch_size * pictures * _visual_numbers(model, learning)
    vocabulary = max(llm.vocab_size, 1 + max(model.config.special_ids))
    return width * numbers + _LOGIT_COPIES * _FLOAT32 * places * vocabulary


def _visual_numbers(model: SetokimModel, learning: dict[str, int]) -> int:
    """That are kept of one picture, by the parts that learn."""
    setok, config = model.setok, model.setok.config
    patches = math.prod(setok.encoder.grid)
    numbers = 0
    if learning["encoder"]:
        seen = setok.encoder.backbone.config
        numbers += (
            patches * seen.num_hidden_layers * _layer(seen.hidden_size, seen.intermediate_size)
        )
    if learning["merger"] or learning["encoder"]:
        # There are never more tokens than patches.
        layers = config.intra_layers + config.inter_layers
        numbers += patches * layers * _layer(config.width, int(config.mlp_ratio * config.width))
    if learning["detokenizer"]:
        layers = config.decoder_cross_layers + config.decoder_layers
        inner = int(config.mlp_ratio * config.decoder_width)
        numbers += math.prod(config.decoder_grid) * layers * _layer(config.decoder_width, inner)
    return numbers


def _layer(width: int, inner: int) -> int:
    """Numbers at each place of a layer whose MLP is not gated."""
    return 10 * width + 2 * inner
