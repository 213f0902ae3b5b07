"""Stage 1 of the paper: training of tokenizer and detokenizer on images and their texts."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from setokim.data import Dataset
from setokim.evaluation.perceptual import PerceptualLoss
from setokim.tokenizer.configuration_setok import ENCODERS, SetokConfig
from setokim.tokenizer.encoders import PATCH_STATISTICS
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.tokenizer.shapelets import unit_shapes
from setokim.tokenizer.token_statistics import channel_units, token_blocks
from setokim.training.engine import Engine
from setokim.training.losses import concept_similarity
from setokim.training.stage import Stage, StageOutput, TrainedModule
from setokim.training.stage1.adversary import Adversary
from setokim.training.stage1.collator import Stage1Collator
from setokim.training.stage1.evaluation import evaluate, reconstructed
from setokim.training.stage1.losses import LossContext, LossSettings, compute_losses
from setokim.training.stage1.phrase_queue import PhraseQueue
from setokim.training.stage1.samples import SHEET_SAMPLES, write_samples
from setokim.training.stage1.settings import Stage1Settings
from setokim.training.step_losses import StepLosses
from setokim.training.text_encoder import build_text_encoder

# Initial logarithm of the inverse temperature (Radford et al., 2021).
_FIRST_SCALE = math.log(1 / 0.07)
TEXT_FILE = "text.safetensors"
# Number of images for the statistics of the encoder's features.
_UNIT_IMAGES = 128


class Stage1(Stage):
    """Stage 1: tokenizer and detokenizer with text encoder, perceptual loss and discriminator.

    Args:
        settings: settings of the run.
    """

    def __init__(self, settings: Stage1Settings):
        super().__init__()
        self.settings = settings
        self.losses, self.token_noise = settings.losses, settings.token_noise
        # Created by `start`. It is not a submodule: its weights are not part of the model.
        self.adversary: Adversary | None = None
        self.setok = build_model(settings.model)
        if self.setok.to_concept is None:
            raise ValueError("model.concept_dim: expected a number in stage 1, got None")
        self.text = build_text_encoder(
            settings.text_encoder, self.setok.config.concept_dim, settings.trust_remote_code
        )
        self.log_scale = nn.Parameter(torch.tensor(_FIRST_SCALE))
        self.perceptual = build_perceptual(settings.losses, self.setok)
        size = self.losses.phrase_queue
        self.queue = PhraseQueue(size) if self.losses.phrases else None
        self._freeze_unused()

    def forward(self, batch: dict[str, Tensor]) -> StageOutput:
        """Reconstruct the images of a batch and compare them with their targets.

        Args:
            batch: output of `Stage1Collator`.

        Returns:
            0-dim weighted losses by the names of `LOSSES`, without those of weight 0, and the
            reconstructed images (B, 3, h, w).
        """
        visual = self.setok.tokenize(batch["pixels"])
        tokens = self._noisy(visual) if self.training and self.token_noise else visual.tokens
        images = self.setok.detokenizer(tokens, visual.occupied).float()
        context = LossContext(
            self.losses,
            self.setok,
            self.text,
            self.log_scale,
            self.perceptual,
            visual,
            images,
            batch["target"],
            batch["words"],
            self.queue,
        )
        losses = compute_losses(context)
        if self.queue is not None and self.training:
            self.queue.push(batch["words"])
        return StageOutput(losses, images)

    @torch.no_grad()
    def prepare(self, dataset: Dataset) -> None:
        """Measure the channels of the encoder's features on the first images, if they are used."""
        units = getattr(self.setok.merger, "feature_units", None)
        if units is None:
            return
        images = [dataset[i].image for i in range(min(_UNIT_IMAGES, len(dataset)))]
        features = [
            self.setok.encoder(images[i : i + 64]).flatten(0, -2) for i in range(0, len(images), 64)
        ]
        units.fit(torch.cat(features))

    def start(self, engine: Engine) -> dict[str, TrainedModule]:
        """Create the discriminator if the adversarial loss has a weight."""
        if not self.losses.adversarial:
            return {}
        config = self.setok.config
        size = tuple(side * config.decoder_patch_size for side in config.decoder_grid)
        self.adversary = Adversary(engine, self.settings, size)
        unwrapped = self.adversary.unwrapped
        return {"discriminator": TrainedModule(unwrapped, self.adversary.optimizer)}

    def accumulate(
        self, engine: Engine, module: nn.Module, batch: dict[str, Tensor], step: int, last: bool
    ) -> StepLosses:
        """Add the gradients of one batch, with adversarial training once it has started."""
        adversary = self.adversary
        if adversary is None or step < self.losses.adversarial_start:
            return super().accumulate(engine, module, batch, step, last)
        with engine.synchronised(module, last):
            output = engine.forward(module, batch)
            losses = dict(output.losses)
            last_layer = self.setok.detokenizer.last_layer
            losses["adversarial"] = adversary.generator_loss(losses, output.images, last_layer)
            engine.backward(sum(losses.values()))
        with engine.synchronised(adversary.module, last):
            others = {
                "discriminator": adversary.accumulate(batch["target"], output.images.detach())
            }
        return StepLosses(losses, others)

    def update(self, engine: Engine, step: int) -> None:
        """Take an optimizer step of the discriminator once its training has started."""
        if self.adversary is not None and step >= self.losses.adversarial_start:
            self.adversary.update(step)

    def collator(self) -> Stage1Collator:
        """Return the collate function of this model."""
        return Stage1Collator(self.setok, self.text.tokenize)

    def evaluate(
        self, collate: Stage1Collator, held_out: Dataset, batch_size: int
    ) -> dict[str, float | None]:
        """Compute the metrics of `setokim.training.stage1.evaluation.evaluate`."""
        return evaluate(self, collate, held_out, batch_size)

    def write_samples(self, collate: Stage1Collator, held_out: Dataset, path: Path) -> None:
        """Write the image sheet of `setokim.training.stage1.samples.write_samples`."""
        write_samples(reconstructed(self, collate, held_out, SHEET_SAMPLES), path)

    def similarity(self, tokens: Tensor, occupied: Tensor, text_ids: Tensor) -> Tensor:
        """Return the similarity (B, T) of images and texts.

        Args:
            tokens: visual tokens (B, R, token_dim).
            occupied: flags of real tokens, (B, R) bool.
            text_ids: token ids (T, W, L) of the phrases of each text.
        """
        concepts, present = self.text(text_ids)
        images = self.setok.to_concept(tokens).float()
        return concept_similarity(images, occupied, concepts.float(), present)

    def export(self, folder: Path) -> None:
        """Write the model, its processor and the text encoder as safetensors and JSON.

        `SetokModel.from_pretrained`, `SetokProcessor.from_pretrained` and `load_text_side` read
        them.
        """
        self.setok.save_pretrained(folder)
        self.setok.processor().save_pretrained(folder)
        text = {f"text.{name}": value for name, value in self.text.state_dict().items()}
        save_file(text | {"log_scale": self.log_scale.data}, folder / TEXT_FILE)

    def load_text_side(self, folder: Path) -> None:
        """Load the text encoder and `log_scale` that `export` has written."""
        found = load_file(folder / TEXT_FILE)
        self.log_scale.data.copy_(found.pop("log_scale"))
        self.text.load_state_dict({k.removeprefix("text."): v for k, v in found.items()})

    def _noisy(self, visual: VisualTokens) -> Tensor:
        """Add noise to tokens (B, R, token_dim), at a random level for each image."""
        tokens, config = visual.tokens, self.setok.config
        real = tokens.detach()[visual.occupied]
        if not len(real):
            return tokens
        _, scale = channel_units(real, token_blocks(config.token_dim, config.outline_dim))
        level = self.token_noise * torch.rand(len(tokens), 1, 1, device=tokens.device)
        noisy = tokens + level * scale.to(tokens) * torch.randn_like(tokens)
        return unit_shapes(noisy, config.outline_dim)

    def _freeze_unused(self) -> None:
        # Distributed training would wait for the gradients of unused parameters.
        weights = self.losses
        if not (weights.contrastive or weights.phrases):
            for module in (self.setok.to_concept, self.text):
                module.requires_grad_(False)
            self.log_scale.requires_grad_(False)
        if not (weights.l1 or weights.l2 or weights.perceptual or weights.adversarial):
            self.setok.detokenizer.requires_grad_(False)


def build_model(fields: dict) -> SetokModel:
    """Build a model from the fields of its configuration.

    Args:
        fields: fields of `SetokConfig`; `encoder` may also be the name of a Hugging Face model.

    Raises:
        ValueError: a field is unknown; `SetokConfig` itself would store it without effect.
        TypeError, ValueError: a field is not valid.
    """
    fields = dict(fields)
    known = [n for n in inspect.signature(SetokConfig).parameters if n != "kwargs"]
    for name in fields:
        if name not in known:
            raise ValueError(f"model.{name}: expected one of {', '.join(known)}, got {name!r}")
    encoder = fields.get("encoder", PATCH_STATISTICS)
    if encoder == "hf" or encoder in ENCODERS:
        return SetokModel(SetokConfig(**fields))
    del fields["encoder"]
    return SetokModel.from_encoder(encoder, **fields)


def build_perceptual(weights: LossSettings, model: SetokModel) -> nn.Module | None:
    """Build the frozen network of the perceptual loss; None if its weight is 0."""
    if not weights.perceptual:
        return None
    if weights.perceptual_network == "pyramid":
        return PerceptualLoss.pyramid()
    if weights.perceptual_network == "encoder":
        # A copy, because the model's encoder may be trained.
        return PerceptualLoss.from_encoder(copy.deepcopy(model.encoder).requires_grad_(False))
    return PerceptualLoss.lpips(weights.perceptual_network)
