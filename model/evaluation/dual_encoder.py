"""Dual encoder of images and texts: SigLIP around the vision encoder of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, SiglipModel

from setokim.data.records import read_json
from setokim.tokenizer.encoders import HFVisionEncoder
from setokim.tokenizer.modeling_setok import SetokModel
from setokim.utils.pretrained import load_pretrained, load_whole

_BATCH_SIZE = 64


class DualEncoder:
    """SigLIP, whose attention pooling turns patches, or other tokens in their place, into a vector.

    Args:
        folder: folder of a SigLIP model of transformers with its tokenizer.
        device: device of the model.

    Raises:
        ImportError: the tokenizer needs a package that is not installed.
        ValueError: the folder does not exist or holds another or a damaged model.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        self._folder = Path(folder)
        path = self._folder / "config.json"
        if not path.is_file():
            raise ValueError(f"expected the folder of a SigLIP model, got {folder}")
        config = read_json(path)
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind != "siglip":
            # CLIP projects its class token, in whose place no other tokens can be.
            raise ValueError(f"expected a model of type 'siglip' in {folder}, got one of {kind!r}")
        self._model = load_whole(SiglipModel, self._folder).to(device).eval()
        self._tokenizer = load_pretrained(AutoTokenizer, self._folder, local_files_only=True)

    def check_encoder(self, setok: SetokModel) -> None:
        """Check that the encoder of a tokenizer is the vision tower of this model.

        Raises:
            ValueError: it is another one, or has been trained since.
        """
        expected = (
            f"text_encoder: expected the SigLIP of the tokenizer's encoder, got {self._folder}"
        )
        if not isinstance(setok.encoder, HFVisionEncoder):
            raise ValueError(f"{expected}, for an encoder that is no vision tower")
        own, theirs = setok.encoder.backbone.state_dict(), self._model.vision_model.state_dict()
        for name, weight in own.items():
            other = theirs.get(name)
            if other is None or other.shape != weight.shape:
                raise ValueError(f"{expected}, which has another shape of {name}")
            if not torch.equal(weight.cpu(), other.to(weight.dtype).cpu()):
                raise ValueError(f"{expected}, which has other weights of {name}")

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts in lower case, as in the training of SigLIP.

        Returns:
            (N, D) float32 of length 1.
        """
        length = self._model.config.text_config.max_position_embeddings
        found = []
        for start in range(0, len(texts), _BATCH_SIZE):
            given = self._tokenizer(
                [text.lower() for text in texts[start : start + _BATCH_SIZE]],
                # Always to the full length, as in training.
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            output = self._model.get_text_features(given["input_ids"].to(self._model.device))
            found.append(F.normalize(output.pooler_output.float(), dim=1))
        return torch.cat(found)

    @torch.no_grad()
    def patches(self, pixels: Tensor) -> Tensor:
        """Compute the features of patches that the attention pooling takes.

        Args:
            pixels: (B, 3, height, width) from `SetokModel.preprocess`.

        Returns:
            (B, N, D), after the last layer norm.
        """
        given = pixels.to(self._model.device, self._model.dtype)
        vision = self._model.vision_model
        native = vision.config.image_size
        resized = tuple(pixels.shape[-2:]) != (native, native)
        return vision(given, interpolate_pos_encoding=resized).last_hidden_state

    @torch.no_grad()
    def pool(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Pool tokens into a vector for each image.

        Args:
            tokens: (B, N, D), patches or means of patches.
            sizes: (B, N) number of patches of each token, which counts as that many equal patches
                (proportional attention: D. Bolya et al., "Token Merging: Your ViT But Faster",
                2023). 0 leaves a token out. None for 1 each.

        Returns:
            (B, D) float32 of length 1.
        """
        head = self._model.vision_model.head
        if sizes is None:
            return F.normalize(head(tokens).float(), dim=1)
        probe = head.probe.expand(len(tokens), -1, -1)
        bias = sizes.to(tokens).log()[:, None].repeat_interleave(head.attention.num_heads, 0)
        mixed = head.attention(probe, tokens, tokens, attn_mask=bias, need_weights=False)[0]
        pooled = mixed + head.mlp(head.layernorm(mixed))
        return F.normalize(pooled[:, 0].float(), dim=1)
