"""The parts of lmms-eval that the adapters need."""

import contextlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

ADAPTERS = ("setokim.evaluation.lmms_adapter", "setokim.evaluation.lmms_hf_adapter")


class Lmms:
    """The part of `lmms_eval.api.model.lmms` that the adapters need."""

    docs: ClassVar[list[dict[str, Any]]] = []

    def __init__(self):
        self.task_dict = {"mine": {"test": self.docs}}


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str


@dataclass
class Instance:
    args: tuple


@contextlib.contextmanager
def fake_lmms(monkeypatch, docs):
    """Put the fake in the place of lmms-eval, and forget the adapters that imported it."""
    monkeypatch.setattr(Lmms, "docs", docs)
    for name, content in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ADAPTERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        yield
    finally:
        for name in ADAPTERS:
            sys.modules.pop(name, None)
