"""Identity of a visual tokenizer: fingerprints of the parts that its tokens depend on.

Equal fingerprints mean equal weights and options, whatever the folder and its other parts. Weights
that are equal but stored in another dtype are another tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from setok_kernels import ClusterConfig
from setokim.tokenizer.configuration_setok import SetokConfig
from setokim.tokenizer.encoders import HFVisionEncoder, VisionEncoder
from setokim.tokenizer.factory import encoder_without_weights
from setokim.tokenizer.modeling_setok import SetokModel
from setokim.tokenizer.patch_statistics import PatchStatisticsEncoder
from setokim.utils.pretrained import locate
from setokim.utils.saved_tensors import SavedTensors

# Parts of a tokenizer, in the order of their work.
PARTS = ("encoder", "clustering", "merger")
# Fields of `SetokConfig`, beside those of `ClusterConfig`.
_CLUSTERING = (
    *("tokens", "token_grid", "num_queries", "token_options", "learnable", "residual"),
    "position_weight",
)
_QUERIES = ("width", "heads", "intra_layers", "mlp_ratio")
_MERGER = (*_QUERIES, "feature_units", "inter_layers", "token_dim", "outline_dim")
# Fields of transformers' configurations that describe a file or its use, not the computation.
_ELSEWHERE = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("id2label", "label2id", "problem_type", "return_dict", "output_attentions"),
    *("output_hidden_states", "auto_map"),
}


def tokenizer_identity(model: SetokModel) -> dict[str, str]:
    """Return the fingerprint of each part of a loaded tokenizer that has all its weights.

    Returns:
        64 hexadecimal digits for each of `PARTS`, or of the last two without an encoder.
    """
    options = _options(model.config, model.encoder)
    if not model.has_encoder:
        del options["encoder"]
    return {
        part: _fingerprint(own, getattr(model, part).state_dict()) for part, own in options.items()
    }


def encoder_identity(
    encoder: VisionEncoder, clustering: ClusterConfig | None = None
) -> dict[str, str]:
    """Return the fingerprint of an encoder, and of a clustering without learnable options.

    They equal those of a `SetokModel` with this encoder and clustering.

    Args:
        encoder: encoder with its weights.
        clustering: options of the clustering; None for none.
    """
    assert isinstance(encoder, nn.Module)
    found = {"encoder": _fingerprint(_encoder_options(encoder), encoder.state_dict())}
    if clustering is not None:
        config = SetokConfig(cluster=dataclasses.asdict(clustering))
        found["clustering"] = _fingerprint(_clustering_options(config), {})
    return found


def folder_identity(folder: str | Path) -> dict[str, str]:
    """Return the fingerprint of each part of a saved tokenizer, without loading its model.

    Args:
        folder: folder of a `SetokModel` or `SetokimModel`, or name of an embedded one.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or there is another model.
    """
    folder = Path(locate(folder))
    config, prefix = saved_config(folder)
    tensors = SavedTensors(folder)
    options = _options(config, encoder_without_weights(config))
    return {
        part: _fingerprint(own, tensors.under(f"{prefix}{part}.")) for part, own in options.items()
    }


def saved_config(folder: Path) -> tuple[SetokConfig, str]:
    """Read the configuration of the tokenizer in a folder.

    Args:
        folder: folder of a `SetokModel` or `SetokimModel`.

    Returns:
        Configuration, and the prefix of the tokenizer's weights in the folder's files.

    Raises:
        OSError: the file is missing.
        ValueError: the file is damaged, or there is another model.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind == "setokim" and isinstance(fields.get("setok"), dict):
        return SetokConfig(**fields["setok"]), "setok."
    if kind != SetokConfig.model_type:
        raise ValueError(f"{path}: expected a SeTok or SeTokim model, got model_type {kind!r}")
    return SetokConfig(**fields), ""


def differing_parts(
    expected: Mapping[str, str], found: Mapping[str, str], parts: Iterable[str]
) -> list[str]:
    """Return those of `parts` whose fingerprints differ, or that `found` lacks."""
    return [part for part in parts if expected[part] != found.get(part)]


def _options(config: SetokConfig, encoder: VisionEncoder) -> dict[str, Any]:
    """Return the options of each part."""
    encoder_options: Any = _encoder_options(encoder)
    if not isinstance(encoder, (HFVisionEncoder, PatchStatisticsEncoder)):
        # Registered by a user, with options of its own.
        encoder_options = [encoder_options, config.encoder, config.encoder_config]
    return {
        "encoder": encoder_options,
        "clustering": _clustering_options(config),
        "merger": [config.tokens, config.token_options, _fields(config, _MERGER)],
    }


def _encoder_options(encoder: VisionEncoder) -> dict[str, Any]:
    options: dict[str, Any] = {
        "class": type(encoder).__name__,
        "grid": encoder.grid,
        "pixel_size": encoder.pixel_size,
        "processor": dataclasses.asdict(encoder.processor),
    }
    if isinstance(encoder, PatchStatisticsEncoder):
        options["weights"] = encoder.weights
    if isinstance(encoder, HFVisionEncoder):
        backbone = encoder.backbone.config.to_dict()
        options["layer"] = encoder.layer
        options["backbone"] = {n: v for n, v in backbone.items() if n not in _ELSEWHERE}
    return options


def _clustering_options(config: SetokConfig) -> dict[str, Any]:
    options = _fields(config, _CLUSTERING)
    if config.tokens == "clusters":
        options["cluster"] = dataclasses.asdict(config.cluster_config())
    if config.tokens == "queries":
        options |= _fields(config, _QUERIES)
    return options


def _fields(config: SetokConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _fingerprint(options: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(_plain(options), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return nested plain values; whole numbers are integers, as 1.0 and 1 are the same option."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if value is None or isinstance(value, (bool, str)):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number
