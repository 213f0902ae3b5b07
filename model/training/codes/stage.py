"""Training of token codes: first on tokens alone, then with the detokenizer on images."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from setokim.data import Dataset
from setokim.evaluation import metrics
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.tokenizer.modeling_setok import SetokModel
from setokim.tokenizer.token_codes import TokenCodes, kl_to_normal
from setokim.training.codes.fit import fit_codes
from setokim.training.codes.settings import CodesSettings
from setokim.training.losses import pixel_loss
from setokim.training.stage import Stage, StageOutput
from setokim.training.stage1.collator import ImageCollator
from setokim.training.stage1.evaluation import Reconstructed
from setokim.training.stage1.samples import SHEET_SAMPLES, write_samples
from setokim.training.stage1.stage import TEXT_FILE
from setokim.utils.pretrained import load_whole

# A channel of a code carries information if its mean divergence is at least this, in nats.
_ACTIVE = 0.1


class Codes(Stage):
    """Codes of the tokens of a model of stage 1, trained with its detokenizer.

    Args:
        settings: settings of the run.

    Raises:
        ValueError: the model of stage 1 is missing or damaged, or has codes already.
    """

    def __init__(self, settings: CodesSettings):
        super().__init__()
        self.settings = settings
        self.setok = _with_codes(settings)
        self.setok.requires_grad_(False)
        for part in (self.codes, self.setok.detokenizer):
            part.requires_grad_(True)

    @property
    def codes(self) -> TokenCodes:
        """Codes of the model."""
        codes = self.setok.codes
        assert codes is not None
        return codes

    def forward(self, batch: dict[str, Tensor]) -> StageOutput:
        """Reconstruct images from samples of the codes of their tokens.

        Args:
            batch: output of `ImageCollator`.

        Returns:
            0-dim weighted losses, without those of weight 0, and the images (B, 3, h, w).
        """
        weights = self.settings.losses
        with torch.no_grad():
            visual = self.setok.tokenize(batch["pixels"])
        tokens = visual.tokens[visual.occupied]
        sampled, mean, log_variance = self.codes.sample(tokens)
        decoded = self.codes.decode(sampled)
        padded = visual.replaced(decoded).tokens
        images = self.setok.detokenizer(padded, visual.occupied).float()
        losses = {
            "pixel": pixel_loss(images, batch["target"], weights.l1, weights.l2),
            "token": weights.token * self._error(decoded, tokens).mean(),
            "kl": weights.kl * kl_to_normal(mean, log_variance).mean(),
        }
        used = {"pixel": weights.l1 or weights.l2, "token": weights.token, "kl": weights.kl}
        return StageOutput({name: loss for name, loss in losses.items() if used[name]}, images)

    def collator(self) -> ImageCollator:
        """Return the collate function of images."""
        return ImageCollator(self.setok)

    @torch.no_grad()
    def prepare(self, dataset: Dataset) -> None:
        """Train the codes on the tokens of the first images."""
        number = min(self.settings.fit.images, len(dataset))
        collate, tokens = self.collator(), []
        for start in range(0, number, 64):
            samples = [dataset[i] for i in range(start, min(start + 64, number))]
            pixels = collate(samples)["pixels"].to(self.setok.device)
            visual = self.setok.tokenize(pixels)
            tokens.append(visual.tokens[visual.occupied])
        fit_codes(self.codes, torch.cat(tokens), self.settings.fit, self.settings.block_weights)

    def visual_parts(self) -> Sequence[torch.nn.Module]:
        """Return the detokenizer."""
        return [self.setok.detokenizer]

    def evaluate(
        self, collate: ImageCollator, held_out: Dataset, batch_size: int
    ) -> dict[str, float | None]:
        """Measure reconstructions from tokens and from codes.

        Returns:
            `psnr` from tokens and `code_psnr` from the means of their codes, in dB;
            `token_error`, the weighted squared error of decoded tokens; `active_channels`, the
            number of channels of a code with a mean divergence of at least 0.1 nats; `tokens`,
            the mean number of tokens of an image.
        """
        psnr: list[float] = []
        code_psnr: list[float] = []
        counts: list[int] = []
        errors, divergences = [], []
        for _, batch, recoded, image in self._reconstructed(collate, held_out, batch_size):
            with torch.no_grad():
                visual = self.setok.tokenize(batch["pixels"])
                exact = self.setok.detokenizer(visual.tokens, visual.occupied).float()
                tokens = visual.tokens[visual.occupied]
                mean, log_variance = self.codes.encode(tokens)
                error = self._error(recoded.tokens[visual.occupied], tokens)
            psnr += metrics.psnr(exact.clamp(0, 1), batch["target"]).tolist()
            code_psnr += metrics.psnr(image.clamp(0, 1), batch["target"]).tolist()
            counts += visual.occupied.sum(1).tolist()
            errors.append(error)
            divergences.append(kl_to_normal(mean[..., None], log_variance[..., None]))
        values = {
            "psnr": statistics.fmean(psnr),
            "code_psnr": statistics.fmean(code_psnr),
            "token_error": float(torch.cat(errors).mean()),
            "active_channels": float((torch.cat(divergences).mean(0) >= _ACTIVE).sum()),
            "tokens": statistics.fmean(counts),
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def write_samples(self, collate: ImageCollator, held_out: Dataset, path: Path) -> None:
        """Write an image sheet: images, reconstructions from their codes, clusters, true masks."""
        write_samples(self._reconstructed(collate, held_out, SHEET_SAMPLES), path)

    def export(self, folder: Path) -> None:
        """Write the model, its processor and the text encoder of stage 1."""
        self.setok.save_pretrained(folder)
        self.setok.processor().save_pretrained(folder)
        text = Path(str(self.settings.start)) / TEXT_FILE
        if text.is_file():
            shutil.copyfile(text, folder / TEXT_FILE)

    def _error(self, decoded: Tensor, tokens: Tensor) -> Tensor:
        return self.codes.token_error(decoded, tokens, self.settings.block_weights)

    @torch.no_grad()
    def _reconstructed(
        self, collate: ImageCollator, dataset: Dataset, batch_size: int
    ) -> Iterator[Reconstructed]:
        """Yield each batch with the tokens decoded from their codes and images from these."""
        for start in range(0, len(dataset), batch_size):
            samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            batch = {k: v.to(self.setok.device) for k, v in collate(samples).items()}
            visual = self.setok.recode(self.setok.tokenize(batch["pixels"]))
            image = self.setok.detokenizer(visual.tokens, visual.occupied)
            yield samples, batch, visual, image.float()


def _with_codes(settings: CodesSettings) -> SetokModel:
    """Load the model of stage 1 and add codes with random weights.

    Raises:
        ValueError: the model is missing or damaged, or has codes already.
    """
    folder = Path(str(settings.start))
    try:
        trained = load_whole(SetokModel, folder)
        fields = trained.config.to_dict()
        if fields["code_dim"] is not None:
            raise ValueError(f"it has codes of {fields['code_dim']} channels already")
        fields |= {"code_dim": settings.code_dim, "code_width": settings.code_width}
        model = SetokModel(SetokConfig(**fields))
    except ValueError as error:
        expected = "a model of stage 1 without codes"
        raise ValueError(f"start: expected {expected}, got {folder}: {error}") from error
    model.load_state_dict(trained.state_dict(), strict=False)
    return model
