"""Stages 2 and 3 of the paper: the language model learns to read, draw and segment pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from setokim.data import Conversation, Dataset
from setokim.shapes_world.tasks import WORDS
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.training.losses import mask_loss, pixel_loss
from setokim.training.stage import Stage
from setokim.training.stage2.evaluation import evaluate
from setokim.training.stage2.samples import draw_answers
from setokim.training.stage2.settings import InstructSettings
from setokim.training.stage2.token_store import TokenStore
from setokim.utils.distributed import mean_over_ranks
from setokim.utils.pretrained import load_pretrained, load_whole
from setokim.vlm.configuration_setokim import SetokimConfig
from setokim.vlm.lora import base_of
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.noise_schedule import signal_levels
from setokim.vlm.processing_setokim import SetokimProcessor
from setokim.vlm.word_tokenizer import build_word_tokenizer

# Pictures from whose tokens the diffusion head takes its units.
_FITTED_ON = 256


class Instruct(Stage):
    """SeTokim with its losses.

    Args:
        settings: of the run.

    Raises:
        TypeError, ValueError: a setting does not fit, or a model is not where it says, or damaged.
        MissingExtraError: a loss needs a package that is not installed.
    """

    def __init__(self, settings: InstructSettings):
        super().__init__()
        self.settings = settings
        self.model, self.processor = build_model(settings)
        if settings.activation_checkpointing:
            self.model.gradient_checkpointing_enable()
        freeze(self.model, settings)
        if settings.losses.diffusion:
            # Needs a package; who lacks it learns so before the first step.
            signal_levels(self.model.head.schedule, self.model.head.steps)
        self._store = TokenStore(settings.keep_tokens) if settings.keep_tokens else None

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Losses of conversations.

        Args:
            batch: of `InstructCollator`.

        Returns:
            0-dim losses, weighted, as far as their weights are not 0: `text`, `diffusion`, `mask`,
            `reconstruction`.
        """
        weights, settings = self.settings.losses, self.settings
        labels = batch["labels"]
        # Of every row, but only what is drawn learns from it.
        chosen = torch.rand(len(labels), device=labels.device) < settings.condition_dropout
        draws = (labels == self.model.config.image_token_id).any(1)
        pictures = batch["pixel_values"]
        if self._store is not None:
            pictures = self._store.tokenize(self.model.setok, pictures)
        output = self.model(
            batch["input_ids"],
            batch["attention_mask"],
            pictures,
            labels,
            chosen & draws,
            settings.max_length,
        )
        found = {}
        if weights.text:
            found["text"] = weights.text * self.model.text_loss(output)
        if weights.diffusion:
            noises = settings.diffusion_repeats, settings.diffusion_noisiest
            loss = self.model.diffusion_loss(output, *noises)
            found["diffusion"] = weights.diffusion * loss
        if weights.mask:
            masks = batch["masks"]
            logits, kept = self.model.segment(output, tuple(masks.shape[1:]))
            found["mask"] = weights.mask * mask_loss(logits, masks[kept])
        if weights.reconstruction:
            loss = self._reconstruction_loss(output.visual, batch["pictures"])
            found["reconstruction"] = weights.reconstruction * loss
        return found

    def _reconstruction_loss(self, visual: VisualTokens, pictures: Tensor) -> Tensor:
        """Of the detokenizer's pictures, the mean over those of all processes."""
        detokenizer = self.model.setok.detokenizer
        drawn = detokenizer(visual.tokens, visual.occupied)
        number = mean_over_ranks(drawn.new_tensor(len(drawn), dtype=torch.float32))
        if not len(drawn):
            # Still depends on every parameter, so that no process waits.
            return sum(p.sum() for p in (visual.tokens, *detokenizer.parameters())) * 0.0
        target = F.interpolate(pictures, drawn.shape[-2:], mode="area")
        return pixel_loss(drawn.float(), target, 0.3, 10.0) * (len(drawn) / number)

    def collator(self) -> InstructCollator:
        """Of conversations."""
        config = self.model.setok.config
        size = tuple(side * config.decoder_patch_size for side in config.decoder_grid)
        length = self.settings.max_length if self.settings.pack else None
        return InstructCollator(self.processor, size, length)

    @torch.no_grad()
    def prepare(self, dataset: Dataset) -> None:
        """The diffusion head takes its units from the tokens of the first pictures."""
        if self.model.head.fitted:
            return
        images: list[Image.Image] = []
        for index in range(min(4 * _FITTED_ON, len(dataset))):
            images += pictures_of(dataset[index])
            if len(images) >= _FITTED_ON:
                break
        if not images:
            raise ValueError("data: expected pictures among the first samples, got none")
        device = self.model.device
        tokens = []
        for start in range(0, len(images), 64):
            pixels = self.processor.image_processor(images[start : start + 64])["pixel_values"]
            visual = self.model.setok.tokenize(pixels.to(device))
            tokens.append(visual.tokens[visual.occupied])
        self.model.head.fit(torch.cat(tokens))

    def visual_parts(self) -> Sequence[torch.nn.Module]:
        """All but the language model."""
        model = self.model
        parts = [model.setok, model.project_in, model.head, model.segmentation]
        return parts if model.recall is None else [*parts, model.recall]

    def hidden_parts(self) -> Sequence[torch.nn.Module]:
        """The layers of the language model and what leads into it."""
        return [base_of(self.model.llm).get_decoder(), self.model.project_in]

    def evaluate(self, collate, held_out: Dataset, batch_size: int) -> dict[str, float | None]:
        """Figures of the tasks, as `setokim.training.stage2.evaluation` explains them."""
        return evaluate(self.model, self.processor, held_out, self.settings.generation)

    def draw(self, collate, held_out: Dataset, path: Path) -> None:
        """Answers to the first conversations of each task."""
        draw_answers(self.model, self.processor, held_out, self.settings.generation, path)

    def export(self, folder: Path) -> None:
        """Writes model and processor; `from_pretrained` of both reads it."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class InstructCollator:
    """Conversations to a batch, in the process that loads them.

    Args:
        processor: of the model.
        size: height and width of masks and of the pictures that are drawn again.
        pack_to: as of the processor.
    """

    def __init__(
        self, processor: SetokimProcessor, size: tuple[int, int], pack_to: int | None = None
    ):
        self._processor, self._size, self._pack_to = processor, size, pack_to

    def __call__(self, samples: Sequence[Conversation]) -> dict[str, Tensor]:
        """What the processor gives, `masks` (K, h, w) bool and `pictures` (M, 3, h, w)."""
        messages = [sample.messages for sample in samples]
        batch = self._processor(messages, pack_to=self._pack_to)
        masks = [self._mask(mask) for sample in samples for mask in sample.masks]
        pictures = [self._picture(image) for sample in samples for image in pictures_of(sample)]
        empty = torch.zeros(0, *self._size)
        batch["masks"] = torch.stack(masks) if masks else empty.bool()
        batch["pictures"] = torch.stack(pictures) if pictures else empty[:, None].repeat(1, 3, 1, 1)
        return batch

    def _mask(self, mask: np.ndarray) -> Tensor:
        if mask.shape != self._size:
            picture = Image.fromarray(mask).resize(self._size[::-1], Image.Resampling.NEAREST)
            mask = np.asarray(picture)
        return torch.from_numpy(mask.copy())

    def _picture(self, image: Image.Image) -> Tensor:
        if image.size != self._size[::-1]:
            image = image.resize(self._size[::-1], Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


def pictures_of(sample: Conversation) -> list[Image.Image]:
    """All pictures of a conversation, in order."""
    parts = (part for message in sample.messages for part in message["content"])
    return [part["image"] for part in parts if part["type"] == "image"]


def build_model(settings: InstructSettings) -> tuple[SetokimModel, SetokimProcessor]:
    """The model that a run begins with, and its processor.

    Raises:
        TypeError, ValueError: a setting does not fit, or a model is not where it says, or damaged.
    """
    fields = dict(settings.model)
    known = set(inspect.signature(SetokimConfig).parameters) - {"kwargs", "setok", "llm", "lora"}
    for name in fields:
        if name not in known:
            expected = f"one of {', '.join(sorted(known))}"
            raise ValueError(f"model.{name}: expected {expected}, got {name!r}")
    lora = None if settings.lora is None else dataclasses.asdict(settings.lora)
    trusts = settings.trust_remote_code
    if settings.start is not None:
        if fields:
            raise ValueError(f"model: expected no fields beside start, got {sorted(fields)}")
        with _naming("start", settings.start):
            model = load_whole(SetokimModel, settings.start)
            processor = SetokimProcessor.from_pretrained(settings.start, trusts)
        if lora is not None:
            model.add_lora(lora)
        return model, processor
    with _naming("setok", settings.setok):
        setok = load_whole(SetokModel, settings.setok)
    if isinstance(settings.llm, str):
        with _naming("llm", settings.llm):
            llm = load_pretrained(AutoModelForCausalLM, settings.llm, trusts)
            tokenizer = load_pretrained(AutoTokenizer, settings.llm, trusts)
    else:
        tokenizer = build_word_tokenizer(WORDS)
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer)} | settings.llm)
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    processor = SetokimProcessor(tokenizer, setok.processor())
    model = SetokimModel.from_parts(setok, llm, processor, **fields)
    if lora is not None:
        model.add_lora(lora)
    return model, processor


@contextlib.contextmanager
def _naming(setting: str, place: str) -> Iterator[None]:
    """Name the setting and the folder in errors of loading a model.

    Raises:
        ValueError: in place of an error of reading files, or of what is in them.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{setting}: expected a whole model, got {place}: {reason}") from error


def freeze(model: SetokimModel, settings: InstructSettings) -> None:
    """Leaves to learn: the projector, the heads, and what the settings name.

    With adapters they learn in place of the language model.
    """
    setok, train, weights = model.setok, settings.train, settings.losses
    setok.to_concept.requires_grad_(False)
    for name, modules in {
        "tokenizer": [setok.merger, setok.clustering],
        "detokenizer": [setok.detokenizer],
    }.items():
        for module in modules:
            module.requires_grad_(name in train)
    setok.encoder.requires_grad_("tokenizer" in train and setok.config.encoder_trainable)
    for name, parameter in model.llm.named_parameters():
        # Reading a checkpoint leaves nothing frozen, not even what has adapters.
        parameter.requires_grad_("llm" in train if model.config.lora is None else "lora_" in name)
    # A parameter without gradient would make distributed training wait for it.
    model.head.requires_grad_(bool(weights.diffusion))
    if model.recall is not None:
        model.recall.requires_grad_(bool(weights.diffusion))
    model.segmentation.requires_grad_(bool(weights.mask))
