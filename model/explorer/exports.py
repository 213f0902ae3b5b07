"""The options of a clustering as text to take away: Python, YAML, and a command line."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import setok_kernels
from setok_kernels import ClusterConfig
from setokim.tokenizer.encoders import PATCH_STATISTICS
from setokim.utils.file_names import utf8_name
from setokim.visualization.functions import Config, changed_fields, function_of, plain_fields

# Max length of a line of Python.
_WIDTH = 88


def python_code(
    config: Config,
    encoder: str,
    image: str | Path,
    backend: str = "auto",
    *,
    grid: tuple[int, int] | None = None,
    model: str | None = None,
    whole: bool = False,
    photograph: bool = False,
) -> str:
    """Return a script that repeats the clustering and prints the number of tokens.

    Args:
        config: options of the clustering.
        encoder: name of the encoder; unused with a model, which has its own.
        image: file of the image.
        backend: backend of the clustering.
        grid: rows and columns of patches of the encoder; None for its own.
        model: folder of a model, or name of an embedded one. The script makes its tokens; with
            another function than `cluster_tokens` it clusters the features of its encoder. None
            for clusters of an encoder's features.
        whole: flag: the folder has a `SetokimModel`, not its tokenizer alone.
        photograph: flag: `image` is the name of a photograph in `skimage.data`.

    Raises:
        ValueError: there can be no photograph of that name.
    """
    loaded = _load_image(image, photograph)
    if model is None:
        chosen = "" if grid is None else f", {tuple(grid)}"
        source = _Source("build_encoder", f"build_encoder({encoder!r}{chosen})")
        return _lines(*_encoder_code(config, source, loaded, backend))
    name = "SetokimModel" if whole else "SetokModel"
    source = _Source(name, f"{name}.from_pretrained({model!r}){'.setok' if whole else ''}.eval()")
    if isinstance(config, ClusterConfig):
        return _lines(*_model_code(config, source, loaded, backend))
    return _lines(*_encoder_code(config, source.encoder(), loaded, backend))


def yaml_text(config: Config) -> str:
    """Return the options as YAML.

    For `cluster_tokens` these are the settings `model.cluster` of stage 1: the fields that differ
    from the defaults, such that `ClusterConfig(**cluster)` is `config`. For another function, with
    which no run trains, `function` is its name in `setok_kernels`, and `options` are its keyword
    arguments.
    """
    if isinstance(config, ClusterConfig):
        return yaml.safe_dump({"model": {"cluster": changed_fields(config)}}, sort_keys=False)
    function = function_of(config)
    values = {"function": function, "options": _keywords(config)}
    return f"# Keyword arguments of setok_kernels.{function}\n" + yaml.safe_dump(
        values, sort_keys=False
    )


def command(
    config: Config,
    encoder: str,
    image: str | Path,
    *,
    grid: tuple[int, int] | None = None,
    model: str | None = None,
    photograph: bool = False,
) -> str:
    r"""Return the command line of `setok cluster` for a POSIX shell, on one line.

    A name with control characters, or with bytes that are no UTF-8, is quoted as bash and zsh read
    it: $'a\x0ab'.

    Args:
        config: options of the clustering.
        encoder: name of the encoder.
        image: file of the image.
        grid: rows and columns of patches of the encoder; None for its own.
        model: folder of a model, for which the result is a comment: there is no such command.
        photograph: flag: `image` is the name of a photograph in `skimage.data`, which a first
            command saves.

    Raises:
        ValueError: there can be no photograph of that name.
    """
    if model is not None:
        return (
            "# setok cluster has no option for a model; the Python code makes the model's tokens.\n"
        )
    name, first = utf8_name(image), ""
    if photograph:
        loaded = _load_image(image, photograph)
        name = f"{image}.png"
        code = "; ".join([*loaded.imports, loaded.line, f"image.save({name!r})"])
        first = f"python -c {_quoted(code)}\n"
    # A name with a hyphen first would be an option.
    words = ["setok cluster", _quoted(f"./{name}" if name.startswith("-") else name)]
    words.append("--out clusters")
    if encoder != PATCH_STATISTICS:
        words.append(_option("encoder", encoder))
    if grid is not None:
        words.append(f"--grid {grid[0]}x{grid[1]}")
    if isinstance(config, ClusterConfig):
        preset, fields = _smallest(config)
        words += [f"--preset {preset}"] if preset else []
    else:
        words.append(f"--function {function_of(config)}")
        fields = changed_fields(config)
    words += [_option(name, value) for name, value in fields.items()]
    return f"{first}{' '.join(words)}\n"


class _LoadedImage(NamedTuple):
    """Python that loads an image: other packages' imports, names of setokim, and a line."""

    imports: list[str]
    names: list[str]
    line: str


def _load_image(image: str | Path, photograph: bool) -> _LoadedImage:
    if not photograph:
        return _LoadedImage([], ["load_image"], f"image = load_image({str(image)!r})")
    if not isinstance(image, str) or not image.isidentifier():
        raise ValueError(f"image: expected the name of a photograph in skimage.data, got {image!r}")
    line = f'image = Image.fromarray(data.{image}()).convert("RGB")'
    return _LoadedImage(["from PIL import Image", "from skimage import data"], [], line)


class _Source(NamedTuple):
    """Where features or tokens come from: a name of setokim, and an expression."""

    name: str
    code: str

    def encoder(self) -> _Source:
        """Return the encoder of this model."""
        return self._replace(code=f"{self.code}.encoder")


def _encoder_code(
    config: Config, encoder: _Source, image: _LoadedImage, backend: str
) -> Iterator[str]:
    """Yield the lines that cluster the features of an encoder."""
    function = function_of(config)
    is_soft = isinstance(config, ClusterConfig)
    yield "import torch"
    yield from image.imports
    yield ""
    yield f"from setok_kernels import {'ClusterConfig, ' if is_soft else ''}{function}"
    yield f"from setokim import {', '.join([encoder.name, *image.names])}"
    yield ""
    yield f"encoder = {encoder.code}"
    if is_soft:
        yield _config_line(config)
        arguments, keywords = ["features", "config"], {}
    else:
        arguments, keywords = ["features"], _keywords(config)
    yield image.line
    yield "with torch.inference_mode():"
    yield "    features = encoder([image])  # (1, H, W, D)"
    yield _call("    clusters = ", function, arguments, keywords | _other_backend(backend))
    yield 'print(int(clusters.counts[0]), "tokens")'


def _model_code(
    config: ClusterConfig, model: _Source, image: _LoadedImage, backend: str
) -> Iterator[str]:
    """Yield the lines that make the tokens of a model."""
    yield "import torch"
    yield from image.imports
    yield ""
    yield "from setok_kernels import ClusterConfig"
    yield f"from setokim import {', '.join([model.name, *image.names])}"
    yield "from setokim.tokenizer.token_grouping import ClusterGrouping"
    yield ""
    yield f"model = {model.code}"
    yield _config_line(config)
    yield "weight, residual = model.config.position_weight, model.config.residual"
    yield "clustering = ClusterGrouping(config, (), weight, residual)"
    for name, value in _other_backend(backend).items():
        yield f"clustering.{name} = {value!r}"
    yield image.line
    yield "with torch.inference_mode():"
    yield "    visual = model.tokenize_features(model.encoder([image]), clustering)"
    yield "packed = visual.pack()"
    yield 'print(len(packed.tokens), "tokens")'


def _config_line(config: ClusterConfig) -> str:
    preset, fields = _smallest(config)
    return _call("config = ", f"ClusterConfig.{preset}" if preset else "ClusterConfig", [], fields)


def _other_backend(backend: str) -> dict[str, str]:
    return {} if backend == "auto" else {"backend": backend}


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def _smallest(config: ClusterConfig) -> tuple[str | None, dict[str, Any]]:
    """Return the preset, None for the default one, that needs the fewest fields, and these."""
    fields = changed_fields(config)
    # The preset's bandwidth depends on the number of clusters.
    preset = ClusterConfig.paper(max_clusters=config.max_clusters)
    further = changed_fields(config, preset)
    if config.max_clusters != ClusterConfig.max_clusters:
        further = {"max_clusters": config.max_clusters, **further}
    return ("paper", further) if len(further) < len(fields) else (None, fields)


def _keywords(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of the function that differ from its own defaults."""
    parameters = inspect.signature(getattr(setok_kernels, function_of(config))).parameters
    return {
        name: value
        for name, value in plain_fields(config).items()
        if value != parameters[name].default
    }


def _call(before: str, name: str, arguments: Sequence[str], keywords: Mapping[str, Any]) -> str:
    """Return a call in Python after other code, on several lines if one would be too long."""
    arguments = [*arguments, *(f"{key}={value!r}" for key, value in keywords.items())]
    line = f"{before}{name}({', '.join(arguments)})"
    if len(line) <= _WIDTH:
        return line
    indent = " " * (len(before) - len(before.lstrip()))
    rows = "".join(f"{indent}    {argument},\n" for argument in arguments)
    return f"{before}{name}(\n{rows}{indent})"


def _option(name: str, value: Any) -> str:
    """Return an option of `setok cluster` with its value."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    text = "none" if value is None else value if isinstance(value, str) else repr(value)
    # A value with a hyphen first, such as -1e-05, would be another option.
    return f"--{flag}{'=' if text.startswith('-') else ' '}{_quoted(text)}"


def _quoted(text: str) -> str:
    """Quote a word for the shell, on one line."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
