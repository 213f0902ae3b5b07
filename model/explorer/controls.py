"""Controls of one setting: the clustering function, and every field of its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from setok_cli.options import FIELD_OPTIONS
from setok_kernels.config import ALPHAS, CAPS, DISTANCE_SCALES, KERNELS, ORDERS
from setokim.explorer.components import NumberSlider
from setokim.visualization.functions import CONFIGS, Config, function_of

# Not "number" alone: Gradio would look it up among its translations.
_NUMBER = "a number"


@dataclass(frozen=True)
class Slider:
    """Slider of a field.

    Attributes:
        low: smallest value.
        high: largest value.
        step: distance of two values; 1 for whole numbers.
        instead: texts of values that are no numbers, such as "none", offered beside the slider.
        start: value of the slider while one of them is chosen.
    """

    low: float
    high: float
    step: float
    instead: tuple[str, ...] = ()
    start: float = 1.0


@dataclass(frozen=True)
class Choice:
    """Choice of a field among texts; "none" stands for None."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Switch:
    """Flag of a field."""


Kind = Slider | Choice | Switch

FIELDS: dict[str, dict[str, tuple[Kind, str]]] = {
    "cluster_tokens": {
        name: (kind, FIELD_OPTIONS[name][2])
        for name, kind in {
            "k": Slider(1, 64, 1),
            "max_clusters": Slider(1, 256, 1),
            "kernel": Choice(KERNELS),
            "bandwidth": Slider(0.005, 3, 0.005),
            "beta": Slider(-1, 2, 0.01),
            "temperature": Slider(0.005, 2, 0.005),
            "offset": Slider(-0.5, 1.5, 0.01),
            "alpha": Choice(ALPHAS),
            "distance_scale": Slider(0.001, 10, 0.001, DISTANCE_SCALES),
            "score_norm": Choice(("max", "none")),
            "distinct_seeds": Switch(),
            "stop_residual": Slider(0, 1, 0.005),
            "min_mass": Slider(0, 100, 0.5),
            "include_self": Switch(),
        }.items()
    },
    "dpc_knn": {
        "num_clusters": (Slider(1, 256, 1, ("none",), 64), "max number of clusters"),
        "threshold": (Slider(0, 2, 0.01, ("none",), 0.5), "score that a centre must exceed"),
        "k": (Slider(1, 64, 1), "neighbours in the local density, the token itself included"),
        "min_clusters": (Slider(1, 64, 1), "number of clusters if no score exceeds the threshold"),
        "order": (Choice(ORDERS), "order of the clusters"),
        "cap": (Choice(CAPS), "upper bound of the seed distance"),
    },
    "threshold_greedy": {
        "threshold": (
            Slider(-1, 1, 0.005),
            "cosine similarity above which two tokens are neighbours",
        ),
    },
}
_TITLES = {
    "cluster_tokens": "cluster_tokens (SeTok)",
    "dpc_knn": "dpc_knn",
    "threshold_greedy": "threshold_greedy (DiVT)",
}


class Controls:
    """Controls of one setting, laid out where it is constructed.

    Attributes:
        function: choice of the function.
        fields: components of all fields of all functions, in the order of `FIELDS`.
        presets: buttons of the presets, by name.

    Args:
        name: name of the setting, which begins the ids of its elements.
        presets: names of the presets of `cluster_tokens`.
    """

    def __init__(self, name: str, presets: Sequence[str]):
        self.function = gr.Radio(
            [(title, function) for function, title in _TITLES.items()],
            value="cluster_tokens",
            label="Function",
            elem_id=f"{name}-function",
        )
        self.presets: dict[str, gr.Button] = {}
        self.fields: list[gr.components.Component] = []
        self._groups: dict[str, gr.Column] = {}
        for function, fields in FIELDS.items():
            is_first = function == "cluster_tokens"
            with gr.Column(visible=is_first, elem_id=f"{name}-{function}") as group:
                self._groups[function] = group
                if is_first:
                    with gr.Row():
                        for preset in presets:
                            self.presets[preset] = gr.Button(
                                f"Preset: {preset}",
                                size="sm",
                                min_width=80,
                                elem_id=f"{name}-preset-{preset}",
                            )
                default = CONFIGS[function]()
                for field, (kind, text) in fields.items():
                    value = getattr(default, field)
                    self.fields += _components(f"{name}-{function}", field, kind, text, value)

    @property
    def inputs(self) -> list[gr.components.Component]:
        """Components whose values `read` takes, in its order."""
        return [self.function, *self.fields]

    @property
    def groups(self) -> list[gr.Column]:
        """Columns of the fields of each function."""
        return list(self._groups.values())

    @property
    def outputs(self) -> list[Any]:
        """Components that `show` updates."""
        return [*self.inputs, *self.groups]

    def show(self, config: Config) -> dict[Any, Any]:
        """Return the updates that make the controls show a config.

        Fields of the other functions keep their values.
        """
        function = function_of(config)
        updates: dict[Any, Any] = {self.function: function}
        for component, value in zip(self.fields, _values(config), strict=True):
            if value is not _KEPT:
                updates[component] = value
        return updates | self.show_group(function)

    def show_group(self, function: str) -> dict[Any, Any]:
        """Return the updates that show the fields of one function."""
        return {group: gr.update(visible=name == function) for name, group in self._groups.items()}


def read(values: Sequence[Any]) -> Config:
    """Return the options that the values of `Controls.inputs` mean.

    Raises:
        TypeError, ValueError: a value does not fit; the message names its field.
    """
    function, *values = values
    if not isinstance(function, str) or function not in FIELDS:
        raise ValueError(f"function: expected one of {', '.join(FIELDS)}, got {function!r}")
    rest = iter(values)
    # Of the other functions too, to get past them; a field that was emptied there does not matter.
    taken = {
        name: {field: [next(rest) for _ in range(_width(kind))] for field, (kind, _) in own.items()}
        for name, own in FIELDS.items()
    }
    fields = FIELDS[function]
    return CONFIGS[function](
        **{field: _read(field, fields[field][0], taken[function][field]) for field in fields}
    )


def within_limits(config: Config) -> tuple[Config, list[str]]:
    """Return a config that the controls can show, and a message per field that they cannot.

    Such a field gets its default.
    """
    function = function_of(config)
    default, messages, refused = CONFIGS[function](), [], {}
    for field, (kind, _) in FIELDS[function].items():
        value = getattr(config, field)
        if not isinstance(kind, Slider) or value is None or isinstance(value, str):
            continue
        if not kind.low <= value <= kind.high:
            messages.append(f"{field}: expected {kind.low} to {kind.high} here, got {value!r}")
            refused[field] = getattr(default, field)
    try:
        return dataclasses.replace(config, **refused), messages
    except ValueError:
        # The others alone do not fit: dpc_knn needs a number of clusters or a threshold.
        return default, messages


# For a component whose value does not change.
_KEPT = object()


def _values(config: Config) -> Iterator[Any]:
    """Yield the value of each of the components of `Controls.fields`."""
    for function, fields in FIELDS.items():
        for field, (kind, _) in fields.items():
            is_shown = function == function_of(config)
            value = getattr(config, field) if is_shown else _KEPT
            if isinstance(kind, Slider) and kind.instead:
                is_text = value is None or isinstance(value, str)
                yield value if not is_shown else (value or "none") if is_text else _NUMBER
                yield _KEPT if is_text else value
            elif isinstance(kind, Choice) and value is None:
                yield "none"
            else:
                yield value


def _components(
    prefix: str, field: str, kind: Kind, text: str, value: Any
) -> list[gr.components.Component]:
    """Make the components of a field, with its default."""
    names = {"label": field, "info": text, "elem_id": f"{prefix}-{field}"}
    if isinstance(kind, Switch):
        return [gr.Checkbox(value, **names)]
    if isinstance(kind, Choice):
        return [gr.Radio(kind.texts, value="none" if value is None else value, **names)]
    sizes = {"minimum": kind.low, "maximum": kind.high, "step": kind.step}
    sizes["precision"] = 0 if kind.step == 1 else None
    if not kind.instead:
        return [NumberSlider(value=value, **sizes, **names)]
    is_number = value is not None and not isinstance(value, str)
    chosen = _NUMBER if is_number else value or "none"
    return [
        gr.Radio([*kind.instead, _NUMBER], value=chosen, **names),
        NumberSlider(
            value=value if is_number else kind.start,
            **sizes,
            label=f"{field}: number",
            elem_id=f"{prefix}-{field}-number",
        ),
    ]


def number(field: str, value: Any) -> float:
    """Return the value of a slider.

    Raises:
        ValueError: it is no number, as of a box that was emptied.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        got = "nothing" if value is None else repr(value)[:80]
        raise ValueError(f"{field}: expected a number, got {got}")
    return value


def _width(kind: Kind) -> int:
    """Return the number of components of a field."""
    return 2 if isinstance(kind, Slider) and kind.instead else 1


def _read(field: str, kind: Kind, values: Sequence[Any]) -> Any:
    """Return what the values of a field's components mean."""
    value = values[0]
    if isinstance(kind, Slider):
        if kind.instead:
            if value != _NUMBER:
                return None if value == "none" else value
            value = values[1]
        value = number(field, value)
        if not kind.low <= value <= kind.high:
            raise ValueError(f"{field}: expected {kind.low} to {kind.high} here, got {value!r}")
        if kind.step == 1 and value != int(value):
            raise ValueError(f"{field}: expected a whole number, got {value!r}")
        return int(value) if kind.step == 1 else float(value)
    return None if value == "none" else value
