"""A tiny SeTokim model in a folder, and a script that it follows when it speaks."""

import pytest
import torch
from PIL import Image
from tiny_stage1 import TINY
from transformers import AutoConfig, AutoModelForCausalLM

from setokim.configuration_setok import SetokConfig
from setokim.data.scene_tasks import WORDS
from setokim.modeling_setok import SetokModel
from setokim.modeling_setokim import SetokimModel
from setokim.processing_setokim import SetokimProcessor
from setokim.word_tokenizer import build_word_tokenizer

LLM = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="session")
def speaker_folder(tmp_path_factory):
    """Where the model is; its diffusion head has units."""
    folder = tmp_path_factory.mktemp("speaker")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        setok = SetokModel(SetokConfig(**TINY["model"]))
        tokenizer = build_word_tokenizer(WORDS)
        llm = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(vocab_size=len(tokenizer), **LLM)
        )
        processor = SetokimProcessor(tokenizer, setok.processor())
        fields = {"head_width": 16, "head_layers": 1, "segmentation_width": 8}
        model = SetokimModel.from_parts(setok, llm, processor, **fields)
        model.head.fit(torch.randn(8, 24))
        # It begins with zeros, from which nothing drawn depends on the noise.
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def says(speaker_folder, monkeypatch):
    """Sets what the model says: words, "<img>", "<image>", "</img>", "[SEG]" and "</s>"."""
    tokenizer = SetokimProcessor.from_pretrained(speaker_folder).tokenizer

    def script(*texts):
        ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)]
        following = iter(ids)

        def logits(self, hidden):
            found = torch.zeros(len(hidden), len(tokenizer))
            found[:, next(following)] = 1
            return found

        monkeypatch.setattr(SetokimModel, "logits", logits)

    return script


@pytest.fixture
def prompts(monkeypatch):
    """Messages that the model was asked, call by call."""
    seen = []
    before = SetokimProcessor.__call__

    def spied(self, conversations, *arguments, **options):
        seen.extend(conversations)
        return before(self, conversations, *arguments, **options)

    monkeypatch.setattr(SetokimProcessor, "__call__", spied)
    return seen


@pytest.fixture
def photo(tmp_path):
    """A picture that is no square."""
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((50, 30)).convert("RGB").save(path)
    return path


def complaints(err):
    """What a command wrote to stderr, without the progress bar of transformers."""
    return [line for line in err.splitlines() if line and "Loading weights" not in line]
