"""Let a vision-language model read clustered visual tokens, in place and reversibly."""

import functools
import importlib.metadata
import inspect
import types
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from setok_kernels.config import ClusterConfig
from setok_kernels.integrations.transformers.calls import Call, prepare
from setok_kernels.integrations.transformers.generation import lengths_of_shorter, with_prompt
from setok_kernels.integrations.transformers.options import Options
from setok_kernels.integrations.transformers.registry import Family, family_of

# Attribute of a reduced model with its `Reduction`.
ATTRIBUTE = "_setok_reduction"
MIN_VERSION, BELOW_VERSION = (5, 17), (6,)


def reduce_visual_tokens(
    model: nn.Module,
    config: ClusterConfig | None = None,
    *,
    rate: float | None = None,
    num_clusters: int | None = None,
    exact: bool = False,
    features: Literal["encoder", "projected"] = "encoder",
    merge: Literal["hard", "soft"] = "hard",
    positions: Literal["compact", "original"] = "compact",
) -> Any:
    """Make a model read one visual token per cluster instead of one per patch.

    The model changes in place; `restore` undoes it. Its processor, `forward` (with labels) and
    `generate` are called as before, with full prompts. Inside, the images are encoded by the model,
    clustered, and the placeholders of dropped tokens leave the prompt and every input with an entry
    per token of it, labels included. `forward` then returns outputs for the shortened prompt, and
    `generate` the given prompt with the new tokens behind it. `max_length` and `min_length` count
    the given prompt; logits processors, stopping criteria and streamers see the shortened one.

    Args:
        model: model of a registered family, or one that PEFT wraps; reduce before
            `torch.compile`, DDP and FSDP.
        config: options of the clustering; None means `ClusterConfig()`.
        rate: clusters of each group as a fraction of its tokens, see `cluster_tokens`. A group is
            an image, a tile, a view of an image or a video, as the family says.
        num_clusters: number of clusters of each group; None with `rate`.
        exact: flag: exactly as many clusters as the budget says. Prompts of equal images then
            have equal lengths, and a compiled model is not compiled again.
        features: features that decide the clusters: "encoder", those that the projector reads, or
            "projected", those that the language model reads.
        merge: mean of the projected features: "hard" over the tokens of a cluster, "soft" weighed
            by the masks, which then receive a gradient.
        positions: position ids: "compact" counts the tokens that are left, "original" keeps the
            position that the seed of each cluster, and each token of text, has in the given prompt.

    Returns:
        `Reduction`, a handle with `restore()`; for encoders without prompts that of their family.

    Raises:
        ImportError: transformers is missing, or its version is not supported.
        TypeError, ValueError: an argument does not fit, the model is reduced already, or its
            family is not registered; the message names it.
    """
    check_version()
    options = Options(
        ClusterConfig() if config is None else config,
        rate,
        num_clusters,
        exact,
        features,
        merge,
        positions,
    )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a model of transformers, got {type(model).__name__}")
    model = unwrapped(model)
    family = family_of(model)
    if any(ATTRIBUTE in module.__dict__ for module in model.modules()):
        raise ValueError("model: expected one with all visual tokens, got one reduced; restore it")
    if family.attach is not None:
        return family.attach(model, family, options)
    reduction = Reduction(model, family, options)
    reduction.wrap("forward", _forward)
    if getattr(model, "can_generate", bool)():
        reduction.wrap("generate", _generate)
    model.__dict__[ATTRIBUTE] = reduction
    return reduction


def restore(model: nn.Module) -> None:
    """Undo `reduce_visual_tokens`.

    Raises:
        ValueError: the model is not reduced.
    """
    model = unwrapped(model)
    reduction = model.__dict__.get(ATTRIBUTE)
    if reduction is None:
        raise ValueError("model: expected one that reduce_visual_tokens changed, got another")
    reduction.restore()


class Reduction:
    """Handle of a reduced model.

    Attributes:
        model: the model that is reduced.
        family: its family.
        options: arguments of `reduce_visual_tokens`.
        counts: number of visual tokens of each row before and after, in the last call with images;
            empty before the first.
    """

    def __init__(self, model: nn.Module, family: Family, options: Options):
        self.model = model
        self.family = family
        self.options = options
        self.counts: list[tuple[int, int]] = []
        # Attributes of the instance in whose place the wrappers are, None for none.
        self._former: dict[str, Any] = {}
        # Flag: the model runs inside `_generate`.
        self._generating = False

    def __reduce__(self):
        raise TypeError(
            "model: expected one with all visual tokens to pickle, got one reduced; restore it "
            "first, or use save_pretrained, which saves it with all tokens"
        )

    def __deepcopy__(self, memo: dict) -> "Reduction":
        # copy.deepcopy registers the model's copy in `memo` before it copies the attributes.
        copied = Reduction(memo[id(self.model)], self.family, self.options)
        for name, former in self._former.items():
            copied._former[name] = former if former is None else _rebound(former, copied.model)
        return copied

    def wrap(self, name: str, body: Callable[..., Any]) -> None:
        """Replace a method of this instance, so that copies of it replace their own."""

        @functools.wraps(getattr(type(self.model), name))
        def method(model, *args, **kwargs):
            return body(model.__dict__[ATTRIBUTE], args, kwargs)

        method.is_of_reduction = True  # type: ignore[attr-defined]
        self._former[name] = self.model.__dict__.get(name)
        self.model.__dict__[name] = types.MethodType(method, self.model)

    def original(self, name: str) -> Callable[..., Any]:
        """Return the method that `wrap` replaced."""
        former = self._former[name]
        if former is None:
            return functools.partial(getattr(type(self.model), name), self.model)
        return former

    def named(self, name: str, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a method by name."""
        model_class: Any = type(self.model)
        return {**dict(zip(_parameters(model_class, name), args, strict=False)), **kwargs}

    def has_images(self, inputs: dict[str, Any]) -> bool:
        """Return whether a call has images to reduce; features from outside are left alone."""
        return inputs.get("mm_encoder_outputs") is None and any(
            inputs.get(modality.pixels) is not None for modality in self.family.modalities
        )

    @property
    def base(self) -> nn.Module:
        """The model without its head."""
        return getattr(self.model, self.model.base_model_prefix, self.model)  # type: ignore[call-overload]

    def prepare(self, inputs: dict[str, Any], generating: bool) -> Call:
        """Prepare a call with images."""
        call = prepare(self.base, self.family, self.options, inputs, generating)
        self.counts = [(sum(row[::2]), sum(row[1::2])) for row in call.shortening.placeholders]
        return call

    def run(self, name: str, call: Call) -> Any:
        """Run an original method with the shortened prompt and the reduced tokens."""
        original = self.original(name)
        if _takes_encoded(type(self.model)):
            return original(**call.with_outputs())
        with call.replaced_features(self.base):
            return original(**call.inputs)

    def restore(self) -> None:
        """Undo the reduction.

        Raises:
            RuntimeError: the model is not reduced any more, or its methods were wrapped since.
        """
        own = self.model.__dict__
        if own.get(ATTRIBUTE) is not self:
            raise RuntimeError("model: expected one that this handle reduced, got it restored")
        for name in self._former:
            if not hasattr(getattr(own.get(name), "__func__", None), "is_of_reduction"):
                raise RuntimeError(
                    f"{name}: expected the method of reduce_visual_tokens, got another; undo what "
                    "replaced it first"
                )
        for name, former in self._former.items():
            if former is None:
                del own[name]
            else:
                own[name] = former
        del own[ATTRIBUTE]


def _forward(reduction: Reduction, args: tuple, kwargs: dict[str, Any]) -> Any:
    original = reduction.original("forward")
    if reduction._generating:
        return original(*args, **_masked(reduction, kwargs))
    inputs = reduction.named("forward", args, kwargs)
    if not reduction.has_images(inputs):
        return original(*args, **kwargs)
    return reduction.run("forward", reduction.prepare(inputs, generating=False))


def _masked(reduction: Reduction, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Add the mask that `generate` drops where all of it is 1.

    Without a mask, a model without a cache takes gaps of the position ids for packed sequences.
    """
    positions = kwargs.get("position_ids")
    if (
        reduction.options.positions == "compact"
        or positions is None
        or kwargs.get("attention_mask") is not None
        or kwargs.get("past_key_values") is not None
    ):
        return kwargs
    return {**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])}


def _generate(reduction: Reduction, args: tuple, kwargs: dict[str, Any]) -> Any:
    inputs = reduction.named("generate", args, kwargs)
    ids: Any = inputs.get("input_ids")
    if ids is None and isinstance(inputs.get("inputs"), Tensor):
        ids = inputs["inputs"]
    if not reduction.has_images(inputs):
        _check_continued(reduction, ids, inputs)
        return reduction.original("generate")(*args, **kwargs)
    inputs = {name: value for name, value in inputs.items() if name != "inputs"}
    inputs["input_ids"] = ids
    with torch.no_grad():
        call = reduction.prepare(inputs, generating=True)
    dropped = ids.shape[1] - call.shortening.length
    call.inputs.update(lengths_of_shorter(reduction.model, inputs, dropped))
    reduction._generating = True
    try:
        result = reduction.run("generate", call)
    finally:
        reduction._generating = False
    return with_prompt(result, ids, call.shortening.length)


def _check_continued(reduction: Reduction, ids: Tensor | None, inputs: dict[str, Any]) -> None:
    """Check that a cache is not continued with a prompt that it holds with fewer tokens."""
    past = inputs.get("past_key_values")
    if past is None or ids is None or past.get_seq_length() == 0:
        return
    for modality in reduction.family.modalities:
        if (ids == getattr(reduction.base.config, modality.placeholder)).any():
            raise ValueError(
                "past_key_values: expected an empty cache for a prompt with images, got "
                f"{past.get_seq_length()} tokens; pass the pixels again without the cache"
            )


@functools.cache
def _parameters(model_class: Any, name: str) -> tuple[str, ...]:
    """Return the names of a method's parameters without self."""
    return tuple(inspect.signature(getattr(model_class, name)).parameters)[1:]


def _takes_encoded(model_class: type) -> bool:
    """Return whether `forward` and `generate` take encoded images; those of 5.17 do not."""
    return "mm_encoder_outputs" in _parameters(model_class, "forward")


def _rebound(method: Any, model: nn.Module) -> Any:
    """Return a method of another instance for this one."""
    if isinstance(method, types.MethodType):
        return types.MethodType(method.__func__, model)
    raise TypeError(
        "model: expected one whose forward and generate are methods to copy, got "
        f"{type(method).__name__}; restore it before the copy"
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that PEFT wraps, or the model itself.

    Raises:
        ValueError: another wrapper has to come after the reduction.
    """
    for name, wrapper in (("_orig_mod", "torch.compile"), ("module", "a parallel wrapper")):
        if name in getattr(model, "_modules", {}):
            raise ValueError(f"model: expected one before {wrapper}, got {type(model).__name__}")
    get = getattr(model, "get_base_model", None)
    return model if get is None else get()


@functools.cache
def check_version() -> None:
    """Check that a supported version of transformers is installed.

    Raises:
        ImportError: it is missing, or its version is not supported.
    """
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            "transformers: expected >=5.17,<6, got none; pip install 'setok-kernels[model]'"
        ) from error
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not MIN_VERSION <= numbers < BELOW_VERSION:
        raise ImportError(f"transformers: expected >=5.17,<6, got {version}")
