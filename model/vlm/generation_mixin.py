"""Generation by `SetokimModel`, and the default options of generation that travel with a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.tokenizer.stored_tokens import Images
from setokim.utils.pretrained import is_embedded, resolve_model
from setokim.vlm.generation import Answer, GenerativeModel, Streamer, generate
from setokim.vlm.generation_config import SetokimGenerationConfig

_FILE = "generation_config.json"
# Arguments of `from_pretrained` that say where on the hub a file is.
_PLACE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class SetokimGenerationMixin:
    """Methods of `SetokimModel` that generate, and that load and save the options of generation.

    Attributes:
        generation_config: options of `generate` unless it is given others; read from the file
            `generation_config.json` of a loaded model, and written beside saved weights.
    """

    generation_config: SetokimGenerationConfig

    @classmethod
    def can_generate(cls) -> bool:
        """Return True, upon which `save_pretrained` writes `generation_config`."""
        return True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None = None, *args: Any, **options: Any
    ) -> Any:
        """Load a model and its options of generation.

        Args:
            pretrained_model_name_or_path: folder, or name on the Hugging Face hub or of an embedded
                model; None for the default embedded model. Embedded models are stored in bfloat16
                and loaded in float32, since bfloat16 is slow on CPUs; `dtype=torch.bfloat16` keeps
                it.
            *args: further arguments of transformers.
            **options: further arguments of transformers.

        Raises:
            OSError: the model does not exist.
            TypeError, ValueError: a file has invalid content, or this installation lacks the
                embedded model.
        """
        name = pretrained_model_name_or_path
        if is_embedded(name) and "state_dict" not in options:
            name, options = resolve_model(name), {"dtype": torch.float32, **options}
        generation_config = options.pop("generation_config", None)
        # A class of transformers comes next in the order of resolution.
        loaded = super().from_pretrained(name, *args, **options)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if generation_config is None and name is not None:
            place = {key: options[key] for key in _PLACE if key in options}
            generation_config = _stored_options(name, place)
        if generation_config is not None:
            model.generation_config = generation_config
        return loaded

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | VisualTokens | Images,
        generation_config: SetokimGenerationConfig | None = None,
        *,
        generators: Sequence[torch.Generator] | None = None,
        streamer: Streamer | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Generate text, images and masks; see `setokim.vlm.generation.generate`.

        Without `generation_config` the model's own is the default.
        """
        return generate(
            cast(GenerativeModel, self),
            input_ids,
            attention_mask,
            pixel_values,
            self.generation_config if generation_config is None else generation_config,
            generators=generators,
            streamer=streamer,
            **options,
        )


def _stored_options(name: str | Path, place: dict[str, Any]) -> SetokimGenerationConfig | None:
    """Return the options of generation of a saved model; None if it has none."""
    if os.path.isdir(name) and not Path(name, place.get("subfolder") or "", _FILE).is_file():
        return None
    try:
        return SetokimGenerationConfig.from_pretrained(name, **place)
    except OSError:
        if os.path.isdir(name):
            raise
        # A model on the hub without the file.
        return None
