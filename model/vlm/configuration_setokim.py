"""Configuration of SeTokim: visual tokenizer, language model, projector and heads."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.vlm.diffusion_head import PREDICTIONS, SCHEDULES

TOKEN_ORDERS = ("raster", "size", "seed", "background")


class SetokimConfig(PretrainedConfig):
    """Configuration of `SetokimModel`, complete in itself: no field points to another file.

    Attributes:
        setok: configuration of the visual tokenizer and detokenizer, `SetokConfig` or its fields.
        llm: configuration of any causal language model of transformers, or its fields with
            `model_type`.
        image_token_id: id of `<image>`, which stands for a visual token.
        image_start_id: id of `<img>`, the start of a generated image.
        image_end_id: id of `</img>`, the end of a generated image.
        segment_id: id of `[SEG]`, whose hidden state selects a mask.
        eos_token_id: id that ends an answer.
        projector_width: channels of the projector's hidden layer; None for the hidden size of the
            language model.
        head_width: hidden width of the diffusion head.
        head_layers: number of residual layers of the diffusion head.
        prediction: target of the diffusion loss, "v_prediction" or "epsilon".
        noise_schedule: noise schedule of the diffusion head, a `beta_schedule` of diffusers.
        noise_steps: number of timesteps of the diffusion in training.
        segmentation_width: channels of the segmentation head.
        token_order: order of an image's tokens in the text: "raster", "size", "seed", or
            "background" for the token with most patches first and the others in raster order.
        answer_order: order of the tokens of a generated image that follows another image: "own" for
            `token_order`, "before" for the order of the nearest tokens of that image.
        recall_width: channels of the queries and keys of the pointer head, which attends to earlier
            visual tokens; None for no pointer head, so that the diffusion head has the hidden state
            before the token alone.
        copy_tokens: flag for a pointer head that repeats an earlier token exactly, if it chooses
            one, or else leaves the token to the diffusion head; needs `recall_width`.
        name_regions: flag for the head that predicts the words for a visual token (`NameHead`).
        lora: rank, alpha, dropout and targets of the adapters in the language model, a dict; None
            for no adapters.
        loss_weights: weights of the training losses by name; None for weight 1 of text, diffusion
            and mask.
    """

    model_type = "setokim"
    # The Trainer of transformers gathers all other outputs in evaluation, and gathers tensors only.
    keys_to_ignore_at_inference: ClassVar = [
        *("losses", "spliced", "visual", "packed", "seen", "repeated"),
    ]

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
        copy_tokens: bool = False,
        name_regions: bool = False,
        lora: dict[str, Any] | None = None,
        loss_weights: dict[str, float] | None = None,
        **kwargs: Any,
    ):
        """Check the fields, see the class.

        Raises:
            ValueError: a field does not fit; the message names it.
        """
        # transformers builds a default configuration when it saves, hence the defaults of None.
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
        self.copy_tokens = copy_tokens
        self.name_regions = name_regions
        self.lora = lora
        self.loss_weights = (
            {"text": 1.0, "diffusion": 1.0, "mask": 1.0} if loss_weights is None else loss_weights
        )
        self._check()
        super().__init__(eos_token_id=eos_token_id, **kwargs)

    @property
    def special_ids(self) -> tuple[int, int, int, int]:
        """Ids of `<image>`, `<img>`, `</img>` and `[SEG]`."""
        return (self.image_token_id, self.image_start_id, self.image_end_id, self.segment_id)

    def setok_config(self) -> SetokConfig:
        """Return the configuration of the visual tokenizer."""
        return SetokConfig(**_fields("setok", self.setok))

    def llm_config(self) -> PretrainedConfig:
        """Return the configuration of the language model.

        Raises:
            ValueError: `llm` is None or lacks `model_type`.
        """
        fields = _fields("llm", self.llm)
        if "model_type" not in fields:
            raise ValueError(f"llm: expected fields with model_type, got fields {sorted(fields)}")
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
        if self.token_order not in TOKEN_ORDERS:
            expected = ", ".join(TOKEN_ORDERS)
            raise ValueError(f"token_order: expected one of {expected}, got {self.token_order!r}")
        if self.answer_order not in ("own", "before"):
            raise ValueError(f"answer_order: expected own or before, got {self.answer_order!r}")
        if self.recall_width is not None and self.recall_width < 1:
            raise ValueError(f"recall_width: expected None or at least 1, got {self.recall_width}")
        for name in ("copy_tokens", "name_regions"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected a bool, got {getattr(self, name)!r}")
        if self.copy_tokens and self.recall_width is None:
            raise ValueError("recall_width: expected a number with copy_tokens, got None")
        if any(self.special_ids) and len(set(self.special_ids)) < 4:
            expected = "four distinct ids of <image>, <img>, </img> and [SEG]"
            raise ValueError(f"image_token_id: expected {expected}, got {self.special_ids}")
        known = {"rank", "alpha", "dropout", "targets"}
        if self.lora is not None and not {"rank", "targets"} <= set(self.lora) <= known:
            expected = "None or keys rank and targets, optionally alpha and dropout"
            raise ValueError(f"lora: expected {expected}, got {self.lora}")


def _fields(name: str, value: dict[str, Any] | None) -> dict[str, Any]:
    if value is None:
        raise ValueError(f"{name}: expected a configuration, got None")
    # transformers adds its version when it saves.
    return {key: entry for key, entry in value.items() if key != "transformers_version"}
