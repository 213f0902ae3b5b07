"""JSON text that UTF-8 can hold, with one line where one is meant."""

from __future__ import annotations

import json
import re
from typing import Any

# Characters that some readers take for the end of a line, or that UTF-8 cannot encode.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def to_json(value: Any, indent: int | None = None) -> str:
    """Encode JSON that UTF-8 can hold and that every reader splits into the same lines.

    Args:
        value: plain values; texts may hold lone surrogates and line separators of all kinds.
        indent: number of spaces of each level; None for one line.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # Such characters occur in strings only, where an escape is equivalent.
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
