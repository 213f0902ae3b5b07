"""Tiny SeTokim model in a folder, and fixtures that script its answers."""

import pytest
from PIL import Image

from helpers.scripted import logits_that_say
from helpers.tiny_setokim import build
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor


@pytest.fixture(scope="session")
def speaker_folder(tmp_path_factory):
    """Return the folder of a tiny model with a fitted diffusion head."""
    folder = tmp_path_factory.mktemp("speaker")
    model, processor = build(noise_steps=100)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def words_as_ids(folder, *texts):
    """Return the ids of texts for a model in a folder, and the size of its vocabulary."""
    tokenizer = SetokimProcessor.from_pretrained(folder).tokenizer
    ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)]
    return ids, len(tokenizer)


@pytest.fixture
def says(speaker_folder, monkeypatch):
    """Return a function that scripts the answer: text, "<img>", "<image>", "[SEG]", "</s>" …"""

    def script(*texts):
        logits = logits_that_say(*words_as_ids(speaker_folder, *texts))
        monkeypatch.setattr(SetokimModel, "logits", logits)

    return script


@pytest.fixture
def prompts(monkeypatch):
    """Record the conversations of each call of the processor."""
    seen = []
    before = SetokimProcessor.__call__

    def spied(self, conversations, *arguments, **options):
        seen.extend(conversations)
        return before(self, conversations, *arguments, **options)

    monkeypatch.setattr(SetokimProcessor, "__call__", spied)
    return seen


@pytest.fixture
def photo(tmp_path):
    """Write a photograph that is not square."""
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((50, 30)).convert("RGB").save(path)
    return path


def complaints(err):
    """Return the lines of stderr without the progress bar of transformers."""
    return [line for line in err.splitlines() if line and "Loading weights" not in line]
