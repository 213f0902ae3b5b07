"""Folders of tiny models with random weights and processors that need no torchvision."""

from pathlib import Path

import torch
import transformers
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from helpers.tiny_llava import PATCH, PATCHES, TEMPLATE, build_tokenizer

SIDE = PATCHES * PATCH
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
VISION = {**WIDTHS, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": PATCH}
TEXT = {**WIDTHS, "num_hidden_layers": 2, "initializer_range": 0.3}


def write_llava_next(folder: Path) -> None:
    """Write a LLaVA-NeXT with tiles of 24 x 24 pixels, and its processor."""
    tokenizer = build_tokenizer()
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    processor = transformers.LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        # The class token of CLIP, which the strategy drops.
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    _write(folder, transformers.LlavaNextForConditionalGeneration, config, processor)


def write_paligemma(folder: Path) -> None:
    """Write a PaliGemma, and its processor."""
    tokenizer = build_tokenizer()
    text = transformers.GemmaConfig(
        **TEXT, vocab_size=len(tokenizer), head_dim=8, num_key_value_heads=1
    )
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, projection_dim=32),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = PATCHES**2
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    _write(folder, transformers.PaliGemmaForConditionalGeneration, config, processor)


def write_siglip(folder: Path) -> None:
    """Write the vision encoder of a SigLIP."""
    config = transformers.SiglipVisionConfig(**VISION)
    transformers.SiglipVisionModel(config).save_pretrained(folder)


def _write(folder, model_class, config, processor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
