"""Tiny SetokimModel with random weights, and scripted logits for its generation."""

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny_stage1 import TINY
from setokim.shapes_world.tasks import WORDS
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.tokenizer.modeling_setok import SetokModel
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor
from setokim.vlm.word_tokenizer import build_word_tokenizer

LLM = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
FIELDS = {"head_width": 16, "head_layers": 1, "noise_steps": 20, "segmentation_width": 8}


def build(code_dim: int | None = None, **fields) -> tuple[SetokimModel, SetokimProcessor]:
    """Build a random model in evaluation mode with a fitted diffusion head, and its processor.

    With `code_dim`, the head generates codes of the tokens.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        setok = SetokModel(SetokConfig(**TINY["model"], code_dim=code_dim, code_width=32))
        tokenizer = build_word_tokenizer(WORDS)
        llm = AutoModelForCausalLM.from_config(
            # A large range, so that positions differ clearly.
            AutoConfig.for_model(vocab_size=len(tokenizer), initializer_range=0.3, **LLM)
        )
        processor = SetokimProcessor(tokenizer, setok.processor())
        model = SetokimModel.from_parts(setok, llm, processor, **FIELDS | fields)
        # The following weights are the same with adapters and without.
        torch.manual_seed(1)
        torch.nn.init.normal_(model.special_in, std=0.3)
        torch.nn.init.normal_(model.special_out, std=0.3)
        for parameter in model.head.parameters():
            # The output layer starts as 0, so that conditions would not matter.
            parameter.data += 0.1 * torch.randn_like(parameter)
        tokens = setok.tokenize([picture(seed) for seed in range(8)]).pack().tokens.detach()
        if setok.codes is not None:
            setok.codes.fit(tokens)
            for parameter in setok.codes.parameters():
                # Random layers of small weights would hardly depend on the code.
                parameter.data *= 3
        model.head.fit(model.targets(tokens))
    return model.eval(), processor


def picture(seed: int) -> Image.Image:
    """Return an image of four fields of random colours."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (2, 2, 3), generator=generator).byte()
    return Image.fromarray(colours.numpy()).resize((24, 24), Image.Resampling.NEAREST)


class Script:
    """Stub of `SetokimModel.logits`: row i generates `rows[i]`, then ends.

    Attributes:
        states: hidden states of each call, in order.

    Args:
        processor: processor of the model.
        rows: texts with "<img>", one "<image>" for each visual token, "</img>" and "[SEG]".
    """

    def __init__(self, processor: SetokimProcessor, *rows: str):
        tokenizer = processor.tokenizer
        self._rows = [tokenizer.encode(row, add_special_tokens=False) for row in rows]
        self._size, self._end = len(tokenizer), tokenizer.eos_token_id
        self.states: list[torch.Tensor] = []

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        number = len(self.states)
        self.states.append(hidden.clone())
        logits = torch.zeros(len(hidden), self._size)
        for row, ids in zip(logits, self._rows, strict=True):
            row[ids[number] if number < len(ids) else self._end] = 1
        return logits
