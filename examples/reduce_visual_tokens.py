"""Let a tiny LLaVA of transformers read clusters of visual tokens: the same calls, then restore."""

import argparse

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from setok_kernels.integrations.transformers import reduce_visual_tokens

PATCHES, IMAGE = 100, 99  # visual tokens of an image, and the id of their placeholder


def tiny_llava() -> LlavaForConditionalGeneration:
    """Return a model with random weights; `from_pretrained` loads one that can see."""
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**widths, num_hidden_layers=3, image_size=40, patch_size=4)
    text = LlamaConfig(**widths, num_hidden_layers=2, vocab_size=100, initializer_range=0.3)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = None
    return model.eval()


def main() -> None:
    """Answer with all tokens, with fewer, and after `restore`; then take a training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.25, help="max fraction of tokens to keep")
    rate = parser.parse_args().rate
    torch.manual_seed(0)
    model = tiny_llava()

    # What a processor returns: a placeholder for each visual token, and the pixels.
    ids = torch.tensor([[1, *[IMAGE] * PATCHES, *range(2, 14)]])
    inputs = {"input_ids": ids, "pixel_values": torch.rand(1, 3, 40, 40)}
    inputs["attention_mask"] = torch.ones_like(ids)

    def answer() -> list[int]:
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()

    print(f"all {PATCHES} tokens: answer {answer()}")
    handle = reduce_visual_tokens(model, rate=rate, merge="soft")
    print(f"rate {rate}: answer {answer()}")
    [(before, after)] = handle.counts
    print(f"visual tokens: {before} -> {after}")

    labels = ids.masked_fill(ids == IMAGE, -100)  # of the full prompt, as the inputs
    model(**inputs, labels=labels).loss.backward()
    grad = model.model.vision_tower.embeddings.patch_embedding.weight.grad
    print(f"gradient that reaches the vision encoder: norm {grad.norm():.2e}")

    handle.restore()
    print(f"restored: answer {answer()}")


if __name__ == "__main__":
    main()
