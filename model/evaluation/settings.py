"""Settings of generation in evaluations, as in a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, fields

from setokim.vlm.generation_config import SetokimGenerationConfig


@dataclass(frozen=True)
class GenerationSettings:
    """Options of generation in evaluations that a YAML file of stages 2 and 3 may set.

    Attributes:
        samples: number of held-out samples; None for all.
        guidance: scale of classifier-free guidance of the visual tokens; 1 for none.
        sampling_steps: diffusion steps of each visual token.
        max_new_tokens: max length of an answer in tokens.
        image_temperature: standard deviation of the noise samples that visual tokens start from.
    """

    samples: int | None = None
    guidance: float = 1.0
    sampling_steps: int = 25
    max_new_tokens: int = 64
    image_temperature: float = 1.0

    def __post_init__(self):
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"generation.samples: expected at least 1, got {self.samples}")
        try:
            self.config()
        except (TypeError, ValueError) as error:
            raise type(error)(f"generation.{error}") from error

    def defaults(self) -> SetokimGenerationConfig:
        """Return the options that a trained model keeps: those of its images.

        The length of an answer is limited in evaluations only.
        """
        return SetokimGenerationConfig(
            guidance=self.guidance,
            sampling_steps=self.sampling_steps,
            image_temperature=self.image_temperature,
        )

    def config(self) -> SetokimGenerationConfig:
        """Return the options as `SetokimModel.generate` takes them."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples"}
        return SetokimGenerationConfig(**options)
