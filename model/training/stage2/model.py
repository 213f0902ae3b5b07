"""Builds the initial model of a run of stage 2 or 3 and freezes its untrained parts."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from setokim.shapes_world.tasks import WORDS
from setokim.tokenizer.modeling_setok import SetokModel
from setokim.training.stage2.settings import InstructSettings
from setokim.utils.pretrained import load_pretrained, load_whole
from setokim.vlm.configuration_setokim import SetokimConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor
from setokim.vlm.word_tokenizer import build_word_tokenizer


def build_model(
    settings: InstructSettings, with_encoder: bool = True
) -> tuple[SetokimModel, SetokimProcessor]:
    """Build the initial model of a run and its processor.

    Args:
        settings: settings of the run.
        with_encoder: flag; False for a run without any image to encode.

    Raises:
        TypeError, ValueError: a setting is not valid, or a model is missing or damaged.
    """
    fields = dict(settings.model)
    known = set(inspect.signature(SetokimConfig).parameters) - {
        *("kwargs", "setok", "llm"),
        # These have settings of their own.
        *("lora", "loss_weights"),
    }
    for name in fields:
        if name not in known:
            expected = f"one of {', '.join(sorted(known))}"
            raise ValueError(f"model.{name}: expected {expected}, got {name!r}")
    lora = None if settings.lora is None else dataclasses.asdict(settings.lora)
    trusts = settings.trust_remote_code
    if settings.start is not None:
        if fields:
            raise ValueError(f"model: expected no fields beside start, got {sorted(fields)}")
        with _naming("start", settings.start):
            model = load_whole(SetokimModel, settings.start, with_encoder=with_encoder)
            processor = SetokimProcessor.from_pretrained(settings.start, trusts)
        if lora is not None:
            model.add_lora(lora)
        return model, processor
    with _naming("setok", settings.setok):
        setok = load_whole(SetokModel, settings.setok, with_encoder=with_encoder)
    if isinstance(settings.llm, str):
        with _naming("llm", settings.llm):
            llm = load_pretrained(AutoModelForCausalLM, settings.llm, trusts)
            tokenizer = load_pretrained(AutoTokenizer, settings.llm, trusts)
    else:
        tokenizer = build_word_tokenizer(WORDS)
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer)} | settings.llm)
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    processor = SetokimProcessor(tokenizer, setok.processor())
    model = SetokimModel.from_parts(setok, llm, processor, **fields)
    if lora is not None:
        model.add_lora(lora)
    return model, processor


@contextlib.contextmanager
def _naming(setting: str, path: str) -> Iterator[None]:
    """Name the setting and the folder in errors of loading a model.

    Raises:
        ValueError: a file cannot be read or is damaged.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{setting}: expected a complete model, got {path}: {reason}") from error


def freeze(model: SetokimModel, settings: InstructSettings) -> None:
    """Freeze all parts but the projector, the heads and the parts to train.

    With LoRA, the low-rank updates are trained in place of the language model.

    Args:
        model: model of the run.
        settings: settings of the run.

    Raises:
        ValueError: the tokenizer shall be trained, but its tokens have codes, which would not fit
            any more.
    """
    setok, train, weights = model.setok, settings.train, settings.losses
    if setok.codes is not None and "tokenizer" in train:
        raise ValueError("train: expected no tokenizer, whose tokens have codes, got tokenizer")
    if setok.to_concept is not None:
        setok.to_concept.requires_grad_(False)
    for name, modules in {
        "tokenizer": [setok.merger, setok.clustering],
        "detokenizer": [setok.detokenizer],
    }.items():
        for module in modules:
            module.requires_grad_(name in train)
    setok.encoder.requires_grad_("tokenizer" in train and setok.config.encoder_trainable)
    for name, parameter in model.llm.named_parameters():
        # A loaded model has no frozen parameters, not even those with low-rank updates.
        parameter.requires_grad_("llm" in train if model.config.lora is None else "lora_" in name)
    # Distributed training would wait for the gradients of unused parameters.
    model.head.requires_grad_(bool(weights.diffusion))
    if model.recall is not None:
        model.recall.requires_grad_(bool(weights.diffusion or weights.copy))
    if model.names is not None:
        model.names.requires_grad_(bool(weights.names))
    if setok.codes is not None:
        setok.codes.requires_grad_(False)
    model.segmentation.requires_grad_(bool(weights.mask))
