"""Configuration of SeTokim: the visual tokenizer, the language model, and what joins them."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.vlm.diffusion_head import PREDICTIONS
from setokim.vlm.noise_schedule import SCHEDULES


class SetokimConfig(PretrainedConfig):
    """Everything that `SetokimModel` is built from; nothing in it points to another file.

    Attributes:
        setok: of the visual tokenizer and detokenizer, `SetokConfig` or its fields.
        llm: of any causal language model of transformers, its configuration or fields with
            `model_type`.
        image_token_id: of `<image>`, the place of a visual token.
        image_start_id: of `<img>`, where a picture begins.
        image_end_id: of `</img>`, where it ends.
        segment_id: of `[SEG]`, whose state becomes a mask.
        eos_token_id: of the end of an answer.
        projector_width: of the projector's hidden layer; None for the language model's width.
        head_width: of the diffusion head.
        head_layers: of the diffusion head.
        prediction: of the diffusion head, "v_prediction" or "epsilon".
        noise_schedule: of the diffusion head, a `beta_schedule` of diffusers.
        noise_steps: of the diffusion head, in training.
        segmentation_width: of the segmentation head.
        token_order: of a picture's tokens in the text: "raster", "size" or "seed".
        answer_order: of a picture that the assistant draws after another one: "own", which is
            `token_order`, or "before", which goes by what its tokens are most like there.
        recall_width: of the attention by which the diffusion head finds earlier visual tokens; None
            for a head that has the state before the token alone.
        lora: None, or {"rank", "alpha", "dropout", "targets"} of adapters in the language model.
    """

    model_type = "setokim"

    def __init__(
        self,
        setok: SetokConfig | dict[str, Any] | None = None,
        llm: PretrainedConfig | dict[str, Any] | None = None,
        image_token_id: int = 0,
        image_start_id: int = 0,
        image_end_id: int = 0,
        segment_id: int = 0,
        eos_token_id: int = 0,
        projector_width: int | None = None,
        head_width: int = 1024,
        head_layers: int = 3,
        prediction: str = "v_prediction",
        noise_schedule: str = "squaredcos_cap_v2",
        noise_steps: int = 1000,
        segmentation_width: int = 64,
        token_order: str = "raster",
        answer_order: str = "own",
        recall_width: int | None = None,
        lora: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        """Checks the fields against one another.

        Raises:
            TypeError, ValueError: one does not fit; the message names it.
        """
        # transformers makes one without arguments to compare with when it writes.
        self.setok = setok.to_dict() if isinstance(setok, PretrainedConfig) else setok
        self.llm = llm.to_dict() if isinstance(llm, PretrainedConfig) else llm
        self.image_token_id = image_token_id
        self.image_start_id = image_start_id
        self.image_end_id = image_end_id
        self.segment_id = segment_id
        self.projector_width = projector_width
        self.head_width = head_width
        self.head_layers = head_layers
        self.prediction = prediction
        self.noise_schedule = noise_schedule
        self.noise_steps = noise_steps
        self.segmentation_width = segmentation_width
        self.token_order = token_order
        self.answer_order = answer_order
        self.recall_width = recall_width
        self.lora = lora
        self._check()
        super().__init__(eos_token_id=eos_token_id, **kwargs)

    @property
    def special_ids(self) -> tuple[int, int, int, int]:
        """Of `<image>`, `<img>`, `</img>` and `[SEG]`."""
        return (self.image_token_id, self.image_start_id, self.image_end_id, self.segment_id)

    def setok_config(self) -> SetokConfig:
        """Of the visual tokenizer."""
        return SetokConfig(**_fields("setok", self.setok))

    def llm_config(self) -> PretrainedConfig:
        """Of the language model."""
        fields = _fields("llm", self.llm)
        if "model_type" not in fields:
            raise ValueError(f"llm: expected fields with model_type, got {sorted(fields)}")
        return AutoConfig.for_model(**fields)

    def _check(self) -> None:
        if self.prediction not in PREDICTIONS:
            expected = " or ".join(PREDICTIONS)
            raise ValueError(f"prediction: expected {expected}, got {self.prediction!r}")
        if self.noise_schedule not in SCHEDULES:
            expected = ", ".join(SCHEDULES)
            raise ValueError(
                f"noise_schedule: expected one of {expected}, got {self.noise_schedule!r}"
            )
        if self.token_order not in ("raster", "size", "seed"):
            raise ValueError(
                f"token_order: expected raster, size or seed, got {self.token_order!r}"
            )
        if self.answer_order not in ("own", "before"):
            raise ValueError(f"answer_order: expected own or before, got {self.answer_order!r}")
        if self.recall_width is not None and self.recall_width < 1:
            raise ValueError(f"recall_width: expected None or at least 1, got {self.recall_width}")
        if any(self.special_ids) and len(set(self.special_ids)) < 4:
            raise ValueError(f"image_token_id: expected four ids, got {self.special_ids}")
        known = {"rank", "alpha", "dropout", "targets"}
        if self.lora is not None and not {"rank", "targets"} <= set(self.lora) <= known:
            raise ValueError(f"lora: expected rank, targets, alpha, dropout, got {self.lora}")


def _fields(name: str, value: dict[str, Any] | None) -> dict[str, Any]:
    if value is None:
        raise ValueError(f"{name}: expected a configuration, got None")
    # What transformers adds when it writes.
    return {key: entry for key, entry in value.items() if key != "transformers_version"}
