"""Files of networks that judge pictures, as their authors publish them, but random and tiny."""

import json
import warnings

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from setokim.evaluation.perceptual import _lpips_shapes
from setokim.vlm.word_tokenizer import build_word_tokenizer

SIDE = 16
_PREPROCESSOR = {
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "do_normalize": True,
    "resample": 3,
}
_LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}


class FakeInception(nn.Module):
    """Means and products of the colours; takes what the network of FID takes."""

    def forward(self, pixels: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and pixels.dtype == torch.uint8
        colours = pixels.float().mean((2, 3)) / 255
        return torch.cat([colours, colours.square()], 1)


def clip_folder(folder):
    tokenizer = build_word_tokenizer(["it", "is", *(str(i) for i in range(10))])
    sizes = {"hidden_size": 8, "intermediate_size": 16, **_LAYERS}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": 2, **sizes}
    vision = {"image_size": SIDE, "patch_size": 8, **sizes}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    return folder


def dino_folder(folder):
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=8, intermediate_size=16, image_size=SIDE, patch_size=8, **_LAYERS
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    return folder


def inception_file(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(FakeInception()).save(path)
    return path


def lpips_file(path):
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: torch.randn(shape, generator=generator).abs() / (10 if len(shape) == 4 else 1)
        for name, shape in _lpips_shapes().items()
    }
    save_file(tensors, path)
    return path
