"""`setok plan`: parameters, and memory of each GPU, of a training run of stage 2 or 3."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setok_cli.errors import UsageError, missing_package
from setok_cli.output import add_json_option, print_json
from setokim.cli._settings import add_settings_options, overrides_of, show_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from setokim.training.memory_plan import MemoryPlan
    from setokim.training.stage2.settings import InstructSettings
    from setokim.vlm.configuration_setokim import SetokimConfig

_GIB = 2**30


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `setok`."""
    parser = commands.add_parser(
        "plan",
        help="count parameters and memory before training",
        description="Prints the parameters of each part, and the memory of each GPU, of a run of "
        "stage 2 or 3. No weight is allocated or read.",
    )
    gpus = parser.add_argument(
        "--gpus",
        required=True,
        # A word after --gpus may be an override.
        type=_gpus_or_override,
        nargs="+",
        metavar="COUNT",
        help="numbers of GPUs, one column for each",
    )
    add_settings_options(parser, gpus)
    add_json_option(parser)
    parser.add_argument(
        "--llm", choices=("vicuna-7b",), help="a built-in shape in place of the settings' llm"
    )
    parser.add_argument(
        "--setok", choices=("paper",), help="a built-in shape in place of the settings' setok"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; return 0.

    Raises:
        UsageError: the settings do not fit, a file cannot be read, or a package is not installed.
    """
    if arguments.help_keys:
        return show_keys(arguments, stages=(2, 3))
    try:
        from setokim.training.memory_plan import plan
        from setokim.training.settings import load_settings
        from setokim.training.stage2.model import freeze
    except ImportError as error:
        raise missing_package(error, "cli,model") from error
    counts = [one for one in arguments.gpus if isinstance(one, int)]
    overrides = [one for one in arguments.gpus if isinstance(one, str)]
    try:
        settings = load_settings(arguments.config, [*overrides_of(arguments), *overrides])
        if settings.stage == 1:
            raise UsageError(f"stage: expected 2 or 3 in {arguments.config}, got 1")
        config = _config(settings, arguments.llm, arguments.setok)
        plans = [
            plan(
                config,
                gpus,
                settings.batch_size,
                settings.max_length,
                settings.parallel,
                settings.precision,
                checkpointing=settings.activation_checkpointing,
                averages=settings.ema > 0,
                freeze=lambda model: freeze(model, settings),
            )
            for gpus in counts
        ]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if arguments.json:
        print_json(_document(plans, settings))
        return 0
    print("\n".join(table(plans)))
    print(
        f"{settings.parallel}, precision {settings.precision}, batches of {settings.batch_size} x "
        f"{settings.max_length} tokens, {settings.accumulation} for a step; activations are an "
        "estimate"
    )
    return 0


def table(plans: Sequence[MemoryPlan]) -> list[str]:
    """Return lines: parameters of the parts, then GiB per GPU with a column for each plan."""
    first = plans[0]
    lines = [f"{'parameters':<14}{'all':>16}{'learning':>16}"]
    for name, number in first.parameters.items():
        lines.append(f"{name:<14}{number:>16,}{first.learning[name]:>16,}")
    sums = (sum(first.parameters.values()), sum(first.learning.values()))
    lines += [f"{'all':<14}{sums[0]:>16,}{sums[1]:>16,}", ""]
    heads = "".join(f"{f'{p.gpus} GPU' + 's' * (p.gpus > 1):>16}" for p in plans)
    lines.append(f"{'GiB per GPU':<14}{heads}")
    for name in first.bytes:
        lines.append(f"{name:<14}" + "".join(f"{p.bytes[name] / _GIB:>16.2f}" for p in plans))
    return [*lines, f"{'all':<14}" + "".join(f"{p.total / _GIB:>16.2f}" for p in plans)]


def _document(plans: Sequence[MemoryPlan], settings: InstructSettings) -> dict[str, Any]:
    """Return the plan as `--json` prints it; sizes are bytes of each GPU."""
    names = ("parallel", "precision", "batch_size", "max_length", "accumulation")
    return {
        "parameters": plans[0].parameters,
        "trained_parameters": plans[0].learning,
        "memory": [{"gpus": p.gpus, "bytes": p.bytes, "total": p.total} for p in plans],
        "settings": {name: getattr(settings, name) for name in names},
    }


def _gpus_or_override(text: str) -> int | str:
    if "=" in text:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None


def _config(settings: InstructSettings, llm: str | None, setok: str | None) -> SetokimConfig:
    import dataclasses

    from setokim.tokenizer.configuration_setok import SetokConfig
    from setokim.training.memory_plan import combine, paper_setok, vicuna_7b
    from setokim.utils.pretrained import load_pretrained
    from setokim.vlm.configuration_setokim import SetokimConfig

    lora = None if settings.lora is None else dataclasses.asdict(settings.lora)
    if settings.start is not None and llm is None and setok is None:
        _require_folder("start", settings.start, "--llm vicuna-7b --setok paper")
        config = load_pretrained(SetokimConfig, settings.start)
        config.lora = lora or config.lora
        return config
    if settings.start is not None and None in (llm, setok):
        raise UsageError("--llm: expected together with --setok in place of start, got one of them")
    if setok is None:
        _require_folder("setok", settings.setok, "--setok paper")
        tokenizer = load_pretrained(SetokConfig, settings.setok)
    else:
        tokenizer = paper_setok()
    language = _llm_config(settings) if llm is None else vicuna_7b()
    return combine(tokenizer, language, lora=lora, **settings.model)


def _llm_config(settings: InstructSettings) -> PretrainedConfig:
    from transformers import AutoConfig

    from setokim.shapes_world.tasks import WORDS
    from setokim.utils.pretrained import load_pretrained
    from setokim.vlm.word_tokenizer import build_word_tokenizer

    llm = settings.llm
    if isinstance(llm, dict):
        # The vocabulary of a language model with random weights, as in training.
        return AutoConfig.for_model(**{"vocab_size": len(build_word_tokenizer(WORDS))} | llm)
    _require_folder("llm", llm, "--llm vicuna-7b")
    return load_pretrained(AutoConfig, llm, settings.trust_remote_code)


def _require_folder(name: str, folder: str, instead: str) -> None:
    if not Path(folder, "config.json").is_file():
        raise UsageError(
            f"{name}: expected a folder with a config.json, got {folder!r}; {instead} takes a "
            "built-in shape"
        )
