"""Options of generation: text, images and masks."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from transformers import GenerationConfig

_INHERITED = frozenset(vars(GenerationConfig()))


class SetokimGenerationConfig(GenerationConfig):
    """The options of `SetokimModel.generate`, and no others: those without effect are errors.

    Args:
        max_new_tokens: max length of an answer in tokens, visual tokens included.
        temperature: temperature of the text tokens; 0 takes the most probable token.
        top_p: probability mass of the most probable tokens that text is sampled from.
        guidance: scale of classifier-free guidance of the visual tokens: 0 ignores the prompt, 1 is
            no guidance, more than 1 extrapolates.
        sampling_steps: diffusion steps of each visual token.
        image_temperature: standard deviation of the noise samples that visual tokens start from.
            Less gives more typical tokens; with 0 the same text gives the same image.
        max_image_tokens: max number of tokens of an image, which ends there; None for as many as
            the visual tokenizer makes.
        image_size: height and width of the images; None for the detokenizer's own.
        mask_size: height and width of the masks.
        use_cache: flag: keep keys and values; without it each step reads the whole sequence.
        **kwargs: metadata of a saved configuration.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of range, or there is no such option.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        sampling_steps: int = 25,
        image_temperature: float = 1.0,
        max_image_tokens: int | None = None,
        image_size: tuple[int, int] | None = None,
        mask_size: tuple[int, int] = (256, 256),
        use_cache: bool = True,
        **kwargs,
    ):
        super().__init__(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            guidance=guidance,
            sampling_steps=sampling_steps,
            image_temperature=image_temperature,
            max_image_tokens=max_image_tokens,
            image_size=_tuple(image_size),
            mask_size=_tuple(mask_size),
            use_cache=use_cache,
            **kwargs,
        )

    @property
    def options(self) -> dict[str, Any]:
        """All options by name, in the order of the arguments."""
        return {name: getattr(self, name) for name in OPTIONS}

    def replace(self, **options) -> SetokimGenerationConfig:
        """Return a copy with other values of some options.

        Args:
            **options: new values by name.

        Raises:
            TypeError: a value has the wrong type.
            ValueError: a value is out of range, or there is no such option.
        """
        return type(self)(**self.options | options)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Check every option; both arguments are those of transformers and change nothing.

        Raises:
            TypeError: a value has the wrong type.
            ValueError: a value is out of range, or there is no such option.
        """
        for name, value in vars(self).items():
            is_metadata = name.startswith("_") or name == "transformers_version"
            # transformers sets each of its own options, to None where it was not given.
            is_unset = name in _INHERITED and value is None
            if not (name in OPTIONS or is_metadata or is_unset):
                raise ValueError(f"{name}: expected one of {', '.join(OPTIONS)}, got {name!r}")
        for name in ("max_new_tokens", "sampling_steps", "max_image_tokens"):
            if name != "max_image_tokens" or self.max_image_tokens is not None:
                _check_number(name, getattr(self, name), Integral, 1)
        for name in ("temperature", "guidance", "image_temperature"):
            _check_number(name, getattr(self, name), Real, 0)
        _check_number("top_p", self.top_p, Real)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number above 0 and up to 1, got {self.top_p}")
        for name in ("image_size", "mask_size"):
            size = getattr(self, name)
            if name == "image_size" and size is None:
                continue
            if not isinstance(size, tuple) or len(size) != 2:
                raise TypeError(f"{name}: expected height and width, got {size!r}")
            for side in size:
                _check_number(name, side, Integral, 1)
        if not isinstance(self.use_cache, bool):
            raise TypeError(f"use_cache: expected bool, got {self.use_cache!r}")


# Names of all options, in the order of the arguments.
OPTIONS = tuple(SetokimGenerationConfig.__init__.__kwdefaults__)


def _tuple(size: Any) -> Any:
    """A size that was read from JSON is a list."""
    return tuple(size) if isinstance(size, list) else size


def _check_number(name: str, value: Any, kind: type, lowest: int | None = None) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "int" if kind is Integral else "float"
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    # A comparison that is false of NaN.
    if lowest is not None and not value >= lowest:
        raise ValueError(f"{name}: expected at least {lowest}, got {value}")
