"""Text encoders of the contrastive loss, which encode phrases as concept vectors."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from setokim.tokenizer.attention import Block
from setokim.tokenizer.pos_embed import sincos_encoding
from setokim.utils.pretrained import load_pretrained

CONCEPTS = "concepts"

# Letters and digits of any script.
_WORD = re.compile(r"[^\W_]+")
# Number of words after which position encodings begin to repeat.
_POSITIONS = 32


class ConceptEncoder(nn.Module):
    """Small transformer over the words of each phrase, without a vocabulary file.

    Words are hashed to the rows of an embedding table. The hash is a checksum that is equal on all
    machines. Two words may share a row; the transformer sees them in context.

    Args:
        dim: number of channels of a concept.
        buckets: number of rows of the embedding table.
        width: number of channels of the transformer, a multiple of 4.
        layers: number of transformer blocks.
        heads: number of attention heads; divides `width`.

    Raises:
        ValueError: a number is less than 1, or `width` is not a multiple of 4 and of `heads`.
    """

    def __init__(
        self, dim: int, buckets: int = 4096, width: int = 128, layers: int = 1, heads: int = 4
    ):
        super().__init__()
        for name, value in (("dim", dim), ("buckets", buckets), ("heads", heads)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if width < 4 or width % 4:
            raise ValueError(f"width: expected a multiple of 4, got {width}")
        self.buckets = buckets
        self.embedding = nn.Embedding(buckets + 1, width, padding_idx=0)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)

    def tokenize(self, phrases: Sequence[Sequence[str]]) -> Tensor:
        """Hash the words of phrases: runs of letters and digits, in lower case.

        Args:
            phrases: lists of at most W phrases for T texts; lists and phrases may be empty.

        Returns:
            (T, W, L) int64 in [0, buckets] on the CPU, 0 for padding; W and L are at least 1.

        Raises:
            TypeError: a text is a string and not a list of them.
        """
        return _stack([[self._hash(phrase) for phrase in text] for text in _checked(phrases)])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each phrase separately.

        Args:
            ids: token ids (T, W, L), int64, from `tokenize`.

        Returns:
            (T, W, dim) concepts, 0 for empty phrases, and (T, W) bool, False for empty phrases.

        Raises:
            ValueError: the shape does not fit.
        """
        _check_ids(ids)
        ids = ids.to(self.embedding.weight.device)
        real = ids.flatten(0, 1) != 0  # (T · W, L)
        positions = torch.arange(ids.shape[2], device=ids.device) / _POSITIONS  # (L,)
        positions = torch.stack([positions, torch.zeros_like(positions)], -1)  # (L, 2)
        x = self.embedding(ids.flatten(0, 1))  # (T · W, L, width)
        x = x + sincos_encoding(positions, x.shape[-1]).to(x.dtype)
        for block in self.blocks:
            x = block(x, real[:, None])
        mean = _mean(self.norm(x), real)  # (T · W, width)
        present = real.any(-1)  # (T · W,)
        concepts = self.project(mean).masked_fill(~present[:, None], 0)
        return concepts.unflatten(0, ids.shape[:2]), present.unflatten(0, ids.shape[:2])

    def _hash(self, phrase: str) -> list[int]:
        words = _WORD.findall(phrase.lower())
        return [zlib.crc32(word.encode()) % self.buckets + 1 for word in words]


class HFConceptEncoder(nn.Module):
    """Hugging Face text encoder, or the text tower of a composite model, with a projection.

    A concept is the projected mean of the last hidden states of a phrase's tokens.

    Attributes:
        backbone: model of transformers.
        tokenizer: tokenizer of the model.
        trainable: flag of a trained backbone; the projection is always trained.
    """

    def __init__(
        self,
        name_or_path: str,
        dim: int,
        trainable: bool = False,
        trust_remote_code: bool = False,
    ):
        """Load the model and its tokenizer.

        Args:
            name_or_path: name on the Hugging Face hub, or folder with a `config.json`.
            dim: number of channels of a concept.
            trainable: flag to train the backbone; otherwise it is frozen in evaluation mode.
            trust_remote_code: permission to run Python code from the folder.

        Raises:
            ValueError: there is no such model, it is not a text encoder, its weights are incomplete
                or damaged, or it needs remote code without permission.
        """
        super().__init__()
        self.backbone, self.tokenizer = _load_text_model(name_or_path, trust_remote_code)
        self.trainable = trainable
        self.backbone.requires_grad_(trainable)
        self.train(self.training)
        config = self.backbone.config
        self._max_length = min(
            self.tokenizer.model_max_length,
            getattr(config, "max_position_embeddings", self.tokenizer.model_max_length),
        )
        self.project = nn.Linear(config.hidden_size, dim)

    def tokenize(self, phrases: Sequence[Sequence[str]]) -> Tensor:
        """Tokenize phrases; long ones are truncated to the model's maximum length.

        Args:
            phrases: lists of at most W phrases for T texts; lists and phrases may be empty.

        Returns:
            (T, W, L) int64 on the CPU: 1 + the tokenizer's ids, because 0 is the padding. W and L
            are at least 1.

        Raises:
            TypeError: a text is a string and not a list of them.
        """
        # The tokenizer would return start and end tokens for an empty phrase.
        nonempty = [phrase for text in _checked(phrases) for phrase in text if phrase.strip()]
        ids = []
        if nonempty:
            ids = self.tokenizer(nonempty, truncation=True, max_length=self._max_length)[
                "input_ids"
            ]
        left = iter(ids)
        return _stack(
            [
                [[1 + i for i in next(left)] if phrase.strip() else [] for phrase in text]
                for text in phrases
            ]
        )

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each phrase separately.

        Args:
            ids: token ids (T, W, L), int64, from `tokenize`.

        Returns:
            (T, W, dim) concepts, 0 for empty phrases, and (T, W) bool, False for empty phrases.
            Only the projection has a gradient unless `trainable`.

        Raises:
            ValueError: the shape does not fit.
        """
        _check_ids(ids)
        ids = ids.to(self.project.weight.device)
        real = ids != 0
        present = real.any(-1)  # (T, W)
        # Attention over padding only is undefined in most models, so empty phrases are left out.
        real = real[present]  # (P, L)
        concepts = self.project.weight.new_zeros(*present.shape, self.project.out_features)
        if not len(real):
            return concepts, present
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            output = self.backbone(
                input_ids=(ids[present] - 1).clamp(min=0), attention_mask=real.long()
            )
        projected = self.project(_mean(output.last_hidden_state, real))  # (P, dim)
        return concepts.to(projected.dtype).index_put((present,), projected), present

    def train(self, mode: bool = True) -> HFConceptEncoder:
        """Set the mode of the module; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.trainable)
        return self


def build_text_encoder(
    name: str, dim: int, trust_remote_code: bool = False
) -> ConceptEncoder | HFConceptEncoder:
    """Build a text encoder by name.

    Args:
        name: name "concepts" for `ConceptEncoder`, or name or folder of a Hugging Face model.
        dim: number of channels of a concept.
        trust_remote_code: permission to run Python code from the folder.

    Raises:
        ValueError: see the encoders.
    """
    if name == CONCEPTS:
        return ConceptEncoder(dim)
    return HFConceptEncoder(name, dim, trust_remote_code=trust_remote_code)


def _load_text_model(name: str, trust_remote_code: bool) -> tuple[nn.Module, Callable]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = load_pretrained(AutoTokenizer, name, trust_remote_code)
        model, info = load_pretrained(
            AutoModel, name, trust_remote_code, dtype=torch.float32, output_loading_info=True
        )
    except ValueError as error:
        raise ValueError(
            f"text encoder: expected {CONCEPTS!r}, a folder with a model and its tokenizer, or the "
            f"name of a text encoder on the Hugging Face hub, got {name!r}: {error}"
        ) from error
    # Without tokenizer files transformers builds a tokenizer with an empty vocabulary.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"text encoder: expected a tokenizer with a vocabulary, got none in {name!r}"
        )
    model = getattr(model, "text_model", model)
    if model.main_input_name != "input_ids" or model.config.is_encoder_decoder:
        raise ValueError(
            f"text encoder: expected a model that encodes tokens as hidden states, or one with "
            f"such a tower, got {name!r}, a {type(model).__name__}"
        )
    # Checkpoints often lack the pooler, which is not used here.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise ValueError(
            f"text encoder: expected all weights of {name!r}, got a checkpoint without "
            f"{len(missing)} of them, such as {missing[0]}"
        )
    return model, tokenizer


def _checked(phrases: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """Raise an error for a flat list of strings, whose letters would count as phrases."""
    for text in phrases:
        if isinstance(text, str):
            raise TypeError(f"phrases: expected a list of phrases per text, got {text!r}")
    return phrases


def _stack(ids: list[list[list[int]]]) -> Tensor:
    """Stack ragged ids to (T, W, L) int64, padded with 0; W and L are at least 1."""
    max_phrases = max((len(text) for text in ids), default=0)
    max_length = max((len(phrase) for text in ids for phrase in text), default=0)
    stacked = torch.zeros(len(ids), max(1, max_phrases), max(1, max_length), dtype=torch.int64)
    for t, text in enumerate(ids):
        for w, phrase in enumerate(text):
            stacked[t, w, : len(phrase)] = torch.tensor(phrase, dtype=torch.int64)
    return stacked


def _check_ids(ids: Tensor) -> None:
    if ids.dim() != 3 or ids.dtype != torch.int64:
        raise ValueError(f"ids: expected (T, W, L) int64, got {tuple(ids.shape)} {ids.dtype}")


def _mean(x: Tensor, real: Tensor) -> Tensor:
    """Return the mean (N, D) of x (N, L, D) over the real tokens (N, L); 0 without any."""
    total = x.masked_fill(~real[..., None], 0).sum(1)
    return total / real.sum(1, keepdim=True).clamp(min=1)
