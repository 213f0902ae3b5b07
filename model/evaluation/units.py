"""Names of questions, equal in two runs only if the questions have the same facts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from setokim.evaluation.prompting import Response

# Hexadecimal digits: a chance of 1 in 3 · 10⁷ that one changed question goes unnoticed is enough.
_DIGITS = 6


def units_of(rows: Iterable[Response]) -> list[str]:
    """Return a name for each response, from its part, number and turn, and a digest of its facts.

    Args:
        rows: responses to different prompts.
    """
    names = []
    for row in rows:
        prompt = row.prompt
        # As in the log, where tuples have become lists.
        facts = json.dumps(prompt.facts, sort_keys=True)
        digest = hashlib.sha256(facts.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
        names.append(f"{prompt.part}-{prompt.number}-{prompt.turn}-{digest}")
    return names
