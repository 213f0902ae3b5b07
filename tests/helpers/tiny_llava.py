"""Tiny Llava of transformers with random weights, with a processor that needs no torchvision."""

from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from setokim.shapes_world.tasks import WORDS
from setokim.vlm.word_tokenizer import build_word_tokenizer

PATCHES, PATCH = 6, 4
# Visual tokens of an image.
TOKENS = PATCHES**2
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}ASSISTANT:"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words with the placeholder "<image>"."""
    tokenizer = build_word_tokenizer(WORDS)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    return tokenizer


def build(template: str | None = TEMPLATE) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build a model in evaluation mode, and its processor."""
    tokenizer = build_tokenizer()
    side = PATCHES * PATCH
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        # The class token of CLIP, which the strategy drops.
        num_additional_image_tokens=1,
        chat_template=template,
    )
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **widths, num_hidden_layers=3, image_size=side, patch_size=PATCH
        ),
        text_config=LlamaConfig(
            **widths,
            num_hidden_layers=2,
            vocab_size=len(tokenizer),
            # A large range, so that answers to different prompts differ.
            initializer_range=0.3,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    # Random weights must not end an answer.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), processor


def write_llava(folder: Path) -> None:
    """Write the model and its processor into a folder."""
    for part in build():
        part.save_pretrained(folder)
