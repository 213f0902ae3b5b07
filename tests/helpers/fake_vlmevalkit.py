"""The parts of VLMEvalKit that the adapter needs."""

import contextlib
import sys
from types import ModuleType

ADAPTER = "setokim.evaluation.vlmevalkit_adapter"


class BaseModel:
    """The part of `vlmeval.vlm.base.BaseModel` that calls an adapter."""

    INTERLEAVE = False
    allowed_types = ("text", "image", "video")

    def __init__(self):
        self.dump_image = None

    def set_dump_image(self, dump_image):
        self.dump_image = dump_image

    def use_custom_prompt(self, dataset):
        return False

    def generate(self, message, dataset=None):
        if isinstance(message, str):
            message = [{"type": "text", "value": message}]
        elif isinstance(message, dict):
            message = [message]
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


@contextlib.contextmanager
def fake_vlmevalkit(monkeypatch):
    """Put the fake in the place of VLMEvalKit, and forget the adapter that imported it."""
    for name, content in {
        "vlmeval": {},
        "vlmeval.vlm": {},
        "vlmeval.vlm.base": {"BaseModel": BaseModel},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    try:
        yield
    finally:
        sys.modules.pop(ADAPTER, None)
