"""METEOR, computed by the official program in Java that pycocoevalcap brings along."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from setokim.evaluation.caption_words import words_of

# Those of the official evaluation of COCO.
_OPTIONS = ("-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")


def missing_meteor() -> str | None:
    """Return the reason why METEOR cannot be computed here; None if it can."""
    if shutil.which("java") is None:
        return "METEOR needs Java, and there is no java on the PATH"
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "METEOR needs pycocoevalcap: pip install pycocoevalcap"
    return None


def meteor(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Compute METEOR 1.5 over all captions together.

    M. Denkowski and A. Lavie, "Meteor universal: Language specific translation evaluation for any
    target language", 2014.

    Args:
        captions: caption of each image; may be an empty text.
        references: reference captions of each image, at least one.

    Returns:
        The score, from 0 to 1.

    Raises:
        RuntimeError: METEOR cannot be computed here, or its program failed.
        ValueError: the images differ, there is none, or one has no reference.
    """
    words, reference_words = words_of(captions, references)
    reason = missing_meteor()
    if reason is not None:
        raise RuntimeError(reason)
    lines = [
        " ||| ".join(("SCORE", *map(" ".join, reference_words[name]), " ".join(caption)))
        for name, caption in words.items()
    ]
    with _Program() as program:
        statistics = [program.ask(line) for line in lines]
        # One score for each caption comes before that of all.
        score = program.ask(" ||| ".join(("EVAL", *statistics)))
        for _ in lines:
            score = program.answer()
    return float(score)


class _Program:
    """The program in Java; pycocoevalcap's own class waits for its lock without end if it fails."""

    def __enter__(self) -> _Program:
        (folder,) = importlib.util.find_spec("pycocoevalcap.meteor").submodule_search_locations
        self._errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(["java", *_OPTIONS], cwd=folder, encoding="utf-8", **pipes)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, line: str) -> str:
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # The answer below is missing too.
            pass
        return self.answer()

    def answer(self) -> str:
        line = self._process.stdout.readline().strip()
        if not line:
            self._errors.seek(0)
            reason = self._errors.read()[-500:].strip() or "no answer"
            raise RuntimeError(f"METEOR's program in Java failed: {reason}")
        return line
