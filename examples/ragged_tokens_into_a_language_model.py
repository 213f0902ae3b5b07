"""Feed the semantic tokens of two images, as many as each needs, to a causal language model."""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import setok_kernels as sk
from setok_kernels.testing import planted_clusters


def encode(objects: list[int], patches: int, features: int) -> torch.Tensor:
    """Return (B, N, D) patch features, as of images with so many different objects each."""
    images = [planted_clusters(1, patches, features, count, seed=count)[0] for count in objects]
    return torch.cat(images)


def main() -> None:
    """Cluster, merge, project, put the tokens before a text, and take one training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=729, help="patches of an image")
    parser.add_argument("--features", type=int, default=64, help="features of a patch")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    x = encode([3, 9], arguments.patches, arguments.features).requires_grad_()  # (B, N, D)
    out = sk.cluster_tokens(x)
    packed = out.pack(sk.merge_tokens(x, out, mode="soft"))  # (S, D) tokens of both images
    for image, count in enumerate(packed.cu_seqlens.diff().tolist()):
        print(f"image {image}: {arguments.patches} patches -> {count} tokens")

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config)  # random weights: any model with `inputs_embeds` works
    project = torch.nn.Linear(arguments.features, config.hidden_size)
    visual, mask = packed.padded(project(packed.tokens))  # (B, V, hidden), (B, V) bool

    text = torch.randint(100, (2, 12))
    embeddings = torch.cat([visual, model.get_input_embeddings()(text)], 1)
    attention = torch.cat([mask, torch.ones_like(text, dtype=torch.bool)], 1).long()
    labels = torch.cat([torch.full(mask.shape, -100), text], 1)  # no loss on images
    positions = (attention.cumsum(1) - 1).clamp(min=0)  # padding takes no position

    answer = model(
        inputs_embeds=embeddings, attention_mask=attention, position_ids=positions, labels=labels
    )
    answer.loss.backward()
    print(f"the language model reads {embeddings.shape[1]} tokens, loss {answer.loss.item():.2f}")
    print(f"gradient that reaches the patches: norm {x.grad.norm().item():.2e}")


if __name__ == "__main__":
    main()
