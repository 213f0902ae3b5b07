"""Stages 2 and 3: training of the language model to read, generate and segment images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from setokim.data import Conversation, Dataset
from setokim.data.conversations import images_of
from setokim.data.stored_image import StoredImage
from setokim.data.tokens.batches import ImageBatch
from setokim.data.tokens.contents import Contents
from setokim.tokenizer.stored_tokens import visual_tokens
from setokim.training.stage import Stage, StageOutput
from setokim.training.stage2.evaluation import evaluate
from setokim.training.stage2.losses import reconstruction_loss
from setokim.training.stage2.model import build_model, freeze
from setokim.training.stage2.samples import write_samples
from setokim.training.stage2.settings import InstructSettings
from setokim.training.stage2.stored_data import (
    check_stored_data,
    stored_encoder,
    tokenizer_folder,
)
from setokim.training.stage2.token_store import TokenStore
from setokim.vlm.diffusion_head import signal_levels
from setokim.vlm.lora import base_of
from setokim.vlm.processing_setokim import IGNORED, SetokimProcessor
from setokim.vlm.region_names import RegionNames

# Number of images for the channel statistics of the diffusion head.
_FIT_IMAGES = 256


class Instruct(Stage):
    """Stage 2 or 3: SeTokim with its losses.

    Args:
        settings: settings of the run.
        data: contents of the training data. If neither these nor the held-out data hold images to
            encode, the model has no vision encoder.
        held_out: contents of the held-out data.

    Raises:
        TypeError, ValueError: a setting is not valid, a model is missing or damaged, or the run
            cannot use the stored tokens of its data.
        MissingExtraError: a loss needs a package that is not installed.
    """

    def __init__(self, settings: InstructSettings, data: Contents, held_out: Contents):
        super().__init__()
        self.settings = settings
        self._identity = check_stored_data(settings, data, held_out)
        self.model, self.processor = build_model(settings, data.images or held_out.images)
        if settings.activation_checkpointing:
            self.model.gradient_checkpointing_enable()
        freeze(self.model, settings)
        if settings.losses.diffusion:
            # Raises the error for a missing package before the first step.
            signal_levels(self.model.head.schedule, self.model.head.steps)
        self._store = self._token_store(bool(data.stored or held_out.stored))

    def _token_store(self, has_stored: bool) -> TokenStore | None:
        """Return what tokenizes the images of a batch; None to leave that to the model."""
        setok, limit = self.model.setok, self.settings.keep_tokens
        if has_stored:
            setok.reads_features = "tokenizer" in self.settings.train
            return TokenStore(limit, setok.max_tokens())
        return TokenStore(limit) if limit else None

    def forward(self, batch: dict[str, Any]) -> StageOutput:
        """Compute the losses of a batch of conversations.

        Args:
            batch: output of `InstructCollator`.

        Returns:
            0-dim weighted losses: those of the model by name, and `reconstruction`, without those
            of weight 0.
        """
        weights, settings = self.settings.losses, self.settings
        labels = batch["labels"]
        # A random number for each row; only rows with an image to generate use it.
        dropped = torch.rand(len(labels), device=labels.device) < settings.condition_dropout
        generates = (labels == self.model.config.image_token_id).any(1)
        images = batch["pixel_values"]
        if self._store is not None:
            images = self._store.tokenize(self.model.setok, images)
        model_weights = weights.model_weights
        output = self.model(
            batch["input_ids"],
            batch["attention_mask"],
            images,
            labels,
            batch["masks"],
            unconditional=dropped & generates,
            max_length=settings.max_length,
            loss_weights=model_weights,
            diffusion_repeats=settings.diffusion_repeats,
            diffusion_noisiest=settings.diffusion_noisiest,
            regions=batch.get("regions"),
        )
        losses = {name: model_weights[name] * loss for name, loss in output.losses.items()}
        if weights.reconstruction:
            loss = reconstruction_loss(self.model.setok.detokenizer, output.visual, batch["images"])
            losses["reconstruction"] = weights.reconstruction * loss
        return StageOutput(losses)

    def collator(self) -> InstructCollator:
        """Return the collate function of conversations."""
        config = self.model.setok.config
        size = tuple(side * config.decoder_patch_size for side in config.decoder_grid)
        length = self.settings.max_length if self.settings.pack else None
        with_images = bool(self.settings.losses.reconstruction)
        with_regions = bool(self.settings.losses.names)
        preprocess = self._store is None
        return InstructCollator(self.processor, size, length, with_images, with_regions, preprocess)

    @torch.no_grad()
    def prepare(self, dataset: Dataset) -> None:
        """Fit the channel statistics of the diffusion head to the tokens of the first images."""
        if self.model.head.fitted:
            return
        images: list[Image.Image | StoredImage] = []
        for index in range(min(4 * _FIT_IMAGES, len(dataset))):
            images += images_of(dataset[index])
            if len(images) >= _FIT_IMAGES:
                break
        if not images:
            raise ValueError("data: expected images among the first samples, got none")
        tokens = []
        for start in range(0, len(images), 64):
            visual = visual_tokens(self.model.setok, images[start : start + 64])
            tokens.append(visual.tokens[visual.occupied])
        self.model.head.fit(self.model.targets(torch.cat(tokens)))

    def visual_parts(self) -> Sequence[torch.nn.Module]:
        """Return all modules but the language model."""
        model = self.model
        parts = [model.setok, model.project_in, model.head, model.segmentation]
        return [*parts, *(part for part in (model.recall, model.names) if part is not None)]

    def hidden_parts(self) -> Sequence[torch.nn.Module]:
        """Return the layers of the language model and the projector into it."""
        return [base_of(self.model.llm).get_decoder(), self.model.project_in]

    def evaluate(self, collate, held_out: Dataset, batch_size: int) -> dict[str, float | None]:
        """Compute the metrics of `setokim.training.stage2.evaluation.evaluate`."""
        settings = self.settings
        return evaluate(
            self.model,
            self.processor,
            held_out,
            settings.generation,
            batch_size,
            settings.max_length,
        )

    def write_samples(self, collate, held_out: Dataset, path: Path) -> None:
        """Write the image sheet of `setokim.training.stage2.samples.write_samples`."""
        write_samples(self.model, self.processor, held_out, self.settings.generation, path)

    def export(self, folder: Path) -> None:
        """Write model and processor; `from_pretrained` of both reads them.

        A vision encoder that the run did without is copied from the files of the initial model.

        Raises:
            OSError, ValueError: those files are gone or have changed.

        The images that the model generates later have the options of the run's evaluation.
        """
        self.model.generation_config = self.settings.generation.defaults()
        state = None
        if not self.model.setok.has_encoder:
            encoder = stored_encoder(tokenizer_folder(self.settings), self._identity["encoder"])
            state = self.model.state_dict() | encoder
        self.model.save_pretrained(folder, state_dict=state)
        self.processor.save_pretrained(folder)


class InstructCollator:
    """Collate function of conversations; it runs in the data loading processes.

    Args:
        processor: tokenizer and image processor of the model.
        size: height and width in pixels of target masks and target images.
        pack_to: length of packed rows, see `SetokimProcessor`; None to pack nothing.
        with_images: flag to return target images for the reconstruction loss.
        with_regions: flag to return the named regions of the images.
        preprocess: flag to preprocess the images; False leaves that to the `TokenStore`, which
            knows most of them.
    """

    def __init__(
        self,
        processor: SetokimProcessor,
        size: tuple[int, int],
        pack_to: int | None = None,
        with_images: bool = False,
        with_regions: bool = False,
        preprocess: bool = True,
    ):
        self._preprocess = preprocess
        self._processor, self._size, self._pack_to = processor, size, pack_to
        self._with_images, self._with_regions = with_images, with_regions
        self._known_names: dict[str, list[int]] = {}

    def __call__(self, samples: Sequence[Conversation]) -> dict[str, Any]:
        """Return the arguments of `SetokimModel.forward` for a batch.

        Returns:
            Outputs of the processor by name, and `masks` (K, h, w) bool. With `with_images` also
            `images` (M, 3, h, w) in [0, 1], which `forward` does not take. With `with_regions`
            also `regions`, `RegionNames` of the M images.
        """
        messages = [sample.messages for sample in samples]
        batch = self._processor(messages, pack_to=self._pack_to, preprocess=self._preprocess)
        masks = [self._mask(mask) for sample in samples for mask in sample.masks]
        images = batch["pixel_values"]
        if any(isinstance(image, StoredImage) for image in images):
            batch["pixel_values"] = ImageBatch(images)
        batch["masks"] = torch.stack(masks) if masks else torch.zeros(0, *self._size).bool()
        if self._with_images:
            images = [self._image(image) for sample in samples for image in images_of(sample)]
            batch["images"] = torch.stack(images) if images else torch.zeros(0, 3, *self._size)
        if self._with_regions:
            batch["regions"] = self._regions(samples)
        return batch

    def _regions(self, samples: Sequence[Conversation]) -> RegionNames:
        regions = [one for s in samples for one in s.regions or [None] * len(images_of(s))]
        names = [[] if one is None else [self._word_ids(n) for n in one.names] for one in regions]
        most = max((len(own) for own in names), default=0)
        longest = max((len(ids) for own in names for ids in own), default=0)
        words = torch.full((len(regions), most, longest), IGNORED)
        for image, own in enumerate(names):
            for region, ids in enumerate(own):
                words[image, region, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        labels = torch.full((len(regions), *self._size), -1)
        for image, one in enumerate(regions):
            if one is not None:
                labels[image] = self._label_map(one.labels)
        return RegionNames(labels, words)

    def _word_ids(self, name: str) -> list[int]:
        if name not in self._known_names:
            tokenizer = self._processor.tokenizer
            self._known_names[name] = tokenizer.encode(name, add_special_tokens=False)
        return self._known_names[name]

    def _label_map(self, labels: np.ndarray) -> Tensor:
        if labels.shape != self._size:
            image = Image.fromarray(labels.astype(np.int32))
            image = image.resize(self._size[::-1], Image.Resampling.NEAREST)
            labels = np.asarray(image)
        return torch.from_numpy(labels.astype(np.int64))

    def _mask(self, mask: np.ndarray) -> Tensor:
        if mask.shape != self._size:
            image = Image.fromarray(mask).resize(self._size[::-1], Image.Resampling.NEAREST)
            mask = np.asarray(image)
        return torch.from_numpy(mask.copy())

    def _image(self, image: Image.Image) -> Tensor:
        if image.size != self._size[::-1]:
            image = image.resize(self._size[::-1], Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
