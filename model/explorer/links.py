"""Links that reproduce the state of the page: a state as the query of a URL, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote, urlencode

from setok_kernels import ClusterConfig
from setok_kernels.config import check_number
from setokim.data.samples import check_natural
from setokim.visualization.functions import CONFIGS, Config, changed_fields, function_of

VIEWS = ("mask", "scope", "density", "delta", "score")
EDITS = ("all", "without", "moved")

# Name of the parameter for a second setting, and beginning of the names of its options.
_SECOND = "b"
_PREFIX = f"{_SECOND}."
_DEFAULT_FUNCTION = "cluster_tokens"
# Fields that are no options of a clustering, with their parameters.
_PAGE = {name: name for name in ("image", "view", "label", "step", "edit", "down", "right")}
_PAGE["second_label"] = f"{_PREFIX}label"
# Max number of characters of a parameter in a message.
_SHOWN = 60

Parameters = Mapping[str, Any] | Iterable[tuple[str, str]]


@dataclass(frozen=True)
class PageState:
    """State of the page that a link reproduces.

    Attributes:
        image: key of the image; "" for the page's own choice.
        first: options of the clustering.
        second: options of the clustering beside it; None for a single one.
        view: name in `VIEWS`.
        label: index of the cluster in view, at least 0.
        second_label: index of the cluster in view under the second setting, at least 0.
        step: index of the step of the scope loop, at least 0.
        edit: name in `EDITS` of the tokens that are reconstructed.
        down: displacement of a moved token in heights of the image, from -1 to 1.
        right: displacement of a moved token in widths of the image, from -1 to 1.

    Raises:
        TypeError, ValueError: a field does not fit; the message names it.
    """

    image: str = ""
    first: Config = field(default_factory=ClusterConfig)
    second: Config | None = None
    view: str = "mask"
    label: int = 0
    second_label: int = 0
    step: int = 0
    edit: str = "all"
    down: float = 0.0
    right: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.image, str):
            raise TypeError(f"image: expected a string, got {self.image!r}")
        if any("\ud800" <= character <= "\udfff" for character in self.image):
            raise ValueError(f"image: expected text without surrogates, got {self.image!r}")
        for name in ("first", "second"):
            value = getattr(self, name)
            if not isinstance(value, Config) and (name == "first" or value is not None):
                raise TypeError(f"{name}: expected options of a clustering, got {value!r}")
        for name, known in (("view", VIEWS), ("edit", EDITS)):
            if getattr(self, name) not in known:
                expected = f"one of {', '.join(known)}"
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        for name in ("label", "second_label", "step"):
            check_natural(name, getattr(self, name))
        for name in ("down", "right"):
            check_number(name, getattr(self, name), least=-1, most=1)

    @property
    def configs(self) -> tuple[Config, ...]:
        """Options of the settings that are shown, one or two."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def labels(self) -> tuple[int, int]:
        """Clusters in view under both settings."""
        return self.label, self.second_label


def to_query(state: PageState) -> str:
    """Return the query of a URL with everything that differs from the defaults.

    Options have their own names, those of the second setting begin with "b."; `b=1` stands for a
    second setting with default options. Numbers are written so that they are read back exactly.
    Example: `image=astronaut&bandwidth=0.35&view=scope&step=3`.
    """
    parameters = {"image": state.image} if state.image else {}
    parameters |= _texts(state.first)
    default = PageState()
    for name, parameter in _PAGE.items():
        if name == "second_label" and state.second is None:
            continue
        if name != "image" and getattr(state, name) != getattr(default, name):
            parameters[parameter] = str(getattr(state, name))
    if state.second is not None:
        second = {f"{_PREFIX}{name}": text for name, text in _texts(state.second).items()}
        parameters |= second or {_SECOND: "1"}
    return urlencode(parameters, quote_via=quote, safe="/")


def from_query(parameters: Parameters) -> tuple[PageState, list[str]]:
    """Read the state from the parameters of a URL; never raises.

    A parameter that cannot be used leaves its field at the default. All others are kept.

    Args:
        parameters: values by name, as text. Repeated names are found in lists of values (`parse_qs`
            of urllib), in pairs (`parse_qsl`), and in mappings with a method `multi_items`
            (Starlette).

    Returns:
        The state, and for each parameter that could not be used a message
        "NAME: expected X, got Y", in the order of the parameters.
    """
    given: dict[str, list[Any]] = {}
    for name, value in _pairs(parameters):
        given.setdefault(name, []).append(value)
    texts, refused = {}, {}
    for name, values in given.items():
        if len(values) > 1:
            refused[name] = _message(name, "one value", len(values))
        elif not isinstance(values[0], str):
            refused[name] = _message(name, "text", values[0])
        else:
            texts[name] = values[0]

    first, known, wrong = _config(
        {name: text for name, text in texts.items() if not name.startswith(_PREFIX)}
    )
    refused |= wrong
    second, known_second = None, set()
    if texts.get(_SECOND, "1") != "1":
        refused[_SECOND] = _message(_SECOND, "1", texts.pop(_SECOND))
    if _SECOND in texts or any(name.startswith(_PREFIX) for name in given):
        second, known_second, wrong = _config(
            {
                name.removeprefix(_PREFIX): text
                for name, text in texts.items()
                if name.startswith(_PREFIX) and name not in _PAGE.values()
            }
        )
        known_second = {f"{_PREFIX}{name}" for name in known_second}
        refused |= {f"{_PREFIX}{name}": f"{_PREFIX}{text}" for name, text in wrong.items()}

    page = {name: _value(texts[text]) for name, text in _PAGE.items() if text in texts}
    if "image" in page:
        page["image"] = texts["image"]
    state, wrong = _without_refused(PageState, {"first": first, "second": second, **page})
    refused |= {_PAGE[name]: _PAGE[name] + text.removeprefix(name) for name, text in wrong.items()}

    names = [*_PAGE.values(), *sorted(known), _SECOND, *sorted(known_second)]
    for name in texts:
        if name not in names:
            refused[name] = _message(name, f"one of {', '.join(names)}", name)
    return state, [_shown(refused[name]) for name in given if name in refused]


def _pairs(parameters: Parameters) -> Iterator[tuple[str, Any]]:
    """Return names and single values."""
    if not isinstance(parameters, Mapping):
        yield from parameters
    elif hasattr(parameters, "multi_items"):
        yield from parameters.multi_items()
    else:
        for name, value in parameters.items():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                yield name, one


def _texts(config: Config) -> dict[str, str]:
    """Return the parameters of options, without the prefix of a second setting."""
    function = function_of(config)
    texts = {} if function == _DEFAULT_FUNCTION else {"function": function}
    return texts | {name: _text(value) for name, value in changed_fields(config).items()}


def _config(texts: Mapping[str, str]) -> tuple[Config, set[str], dict[str, str]]:
    """Return the options that parameters give, the names they may have, and the refused ones."""
    function = texts.get("function", _DEFAULT_FUNCTION)
    refused = {}
    if function not in CONFIGS:
        refused["function"] = _message("function", f"one of {', '.join(CONFIGS)}", function)
        function = _DEFAULT_FUNCTION
    kind = CONFIGS[function]
    known = {one.name for one in fields(kind)}
    values = {name: _value(text) for name, text in texts.items() if name in known}
    config, wrong = _without_refused(kind, values)
    return config, known | {"function"}, refused | wrong


def _without_refused(kind: type, values: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Build a dataclass without the values that its own checks refuse, one after the other.

    Args:
        kind: class whose errors begin with the name of the field, and which has defaults.
        values: values of some fields.

    Returns:
        The instance, and the message about each refused field by its name.
    """
    values, refused = dict(values), {}
    while True:
        try:
            return kind(**values), refused
        except (TypeError, ValueError) as error:
            message = str(error)
            name = message.partition(":")[0]
            del values[name]
            refused[name] = message


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def _value(text: str) -> Any:
    """Return None, a bool, an int, a float or text, the inverse of `_text`.

    Which of them a field takes is checked by the field's class.
    """
    if text in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:  # also of an integer with more digits than Python converts
            continue
    return text


def _message(name: str, expected: str, got: Any) -> str:
    # A name may have any characters, line breaks among them.
    return f"{_shortened(repr(name)[1:-1])}: expected {expected}, got {got!r}"


def _shown(message: str) -> str:
    """Shorten what came, which may be a megabyte, in a message "NAME: expected X, got Y"."""
    expected, got, value = message.partition(", got ")
    return f"{expected}{got}{_shortened(value)}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
