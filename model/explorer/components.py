"""Components of Gradio whose values reach the handlers as they come, for messages of our own."""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from setokim.utils.file_names import printable_name


class _WithoutStub(type(gr.Slider)):  # type: ignore[misc]
    """Metaclass of Gradio's components, without the stub file that it writes beside a module."""

    def __new__(mcs, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> type:
        return ABCMeta.__new__(mcs, name, bases, attributes)


class NumberSlider(gr.Slider, metaclass=_WithoutStub):
    """Slider with any value, also none: Gradio's own check fails at a box that was emptied."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """Return the value as it came."""
        return payload


class ImageFile(gr.Image, metaclass=_WithoutStub):
    """Image input whose value is a file and its name; the handler looks at what it holds."""

    is_template = True

    def preprocess(self, payload: ImageData | None) -> tuple[str, str] | None:  # type: ignore[override]
        """Return the file of the upload, and its name on the user's machine."""
        if payload is None or payload.path is None:
            return None
        return payload.path, printable_name(payload.orig_name or Path(payload.path).name)
