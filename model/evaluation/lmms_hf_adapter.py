"""Adapter that lets lmms-eval run models of transformers with fewer visual tokens.

lmms_eval --model setok_hf --model_args pretrained=DIR,rate=0.25 …; see docs/existing-models.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from setok_kernels import ClusterConfig
from setok_kernels.integrations.transformers import reduce_visual_tokens
from setokim.evaluation.existing_models import ExistingModel
from setokim.evaluation.lmms_adapter import GreedyAdapter

_USUAL = {"exact": False, "features": "encoder", "merge": "hard", "positions": "compact"}


class SetokHf(GreedyAdapter):
    """Model of lmms-eval with a vision-language model of transformers, which decodes greedily.

    Without `rate` and `num_clusters`, the model reads all its visual tokens, for the score to
    compare with.

    Args:
        pretrained: folder with the weights and the processor of a model.
        rate: number of clusters as a fraction of each image's visual tokens, or None.
        num_clusters: number of clusters of an image, or None.
        exact: flag: exactly as many visual tokens, rather than at most as many clusters.
        features: features that are clustered, "encoder" or "projected".
        merge: weights of the tokens of a cluster, "hard" or "soft".
        positions: positions of the kept tokens, "compact" or "original".
        device: device of the model; None for a GPU if there is one, one for each process.
        batch_size: number of questions in a batch.
        max_batch_size: None only, since the batch size is not searched for.
        config: fields of `ClusterConfig`, such as bandwidth=0.4.

    Raises:
        ValueError: the folder has no such model, an argument does not fit, or an argument of the
            reduction is given without a budget.
        TypeError: an argument is unknown.
        ImportError: the processor needs a package that is missing.
    """

    name = "setok_hf"

    def __init__(
        self,
        pretrained: str,
        rate: float | None = None,
        num_clusters: int | None = None,
        exact: bool = False,
        features: str = "encoder",
        merge: str = "hard",
        positions: str = "compact",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **config: Any,
    ):
        super().__init__(device, batch_size, max_batch_size)
        options = {"exact": exact, "features": features, "merge": merge, "positions": positions}
        reduces = rate is not None or num_clusters is not None
        given = [*config, *(name for name, value in options.items() if value != _USUAL[name])]
        if given and not reduces:
            raise ValueError(f"{given[0]}: expected rate or num_clusters with it, got neither")
        clustering = ClusterConfig(**{name: _plain(value) for name, value in config.items()})
        self._existing = ExistingModel.load(pretrained, self._device)
        self.model, self.processor = self._existing.model, self._existing.processor
        if reduces:
            reduce_visual_tokens(
                self.model, clustering, rate=rate, num_clusters=num_clusters, **options
            )

    def answer(self, prompts: Sequence[list[dict[str, Any]]], max_new_tokens: int) -> list[str]:
        """Return the answer to each conversation of a batch, as of `GreedyAdapter.answer`."""
        inputs = self._existing.inputs(prompts)
        return self._existing.decode(self._existing.generate(inputs, max_new_tokens).ids)


def manifest():
    """Return the entry that lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("setok_hf", simple_class_path=f"{__name__}.{SetokHf.__name__}")


def _plain(value: Any) -> Any:
    """Return the value of a field; lmms-eval reads numbers and flags from text, but not None."""
    return None if value in ("none", "None") else value
