"""Answers on disk, a line of JSON each: what a killed run has answered is not asked again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setokim.benchmarks.asking import Answered, Asked
from setokim.data.records import parse_json
from setokim.data.rle import decode_rle, encode_rle

FILE = "predictions.jsonl"
_RUN = "run.json"
_PICTURES = "pictures"


class AnswerLog:
    """The answers of a run in a folder.

    FOLDER/predictions.jsonl has a line for each answer, with the facts that it is judged by, and
    for each sample that could not be read one with "broken", the reason. Masks are run lengths as
    of COCO, pictures are PNG files beside it.

    Args:
        folder: made if need be.
        run: what the answers depend on, plain values; kept in FOLDER/run.json.

    Raises:
        ValueError: the folder has answers of another run, or a line that is none.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, Any]):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check_run(dict(run))
        self._path = self._folder / FILE
        self.rows: list[Answered] = []
        self.broken: dict[int, str] = {}
        self._done: set[tuple[str, int, int]] = set()
        self._read()

    def __contains__(self, asked: Asked) -> bool:
        """Whether the question has an answer."""
        return (asked.part, asked.number, asked.turn) in self._done

    def add(self, rows: Sequence[Answered]) -> None:
        """Writes answers; once this returns they are on disk."""
        lines = []
        for row in rows:
            line = _to_plain(row)
            if row.drawn is not None:
                line["picture"] = self._save(row)
                # Thousands of pictures do not fit into memory.
                row = dataclasses.replace(row, drawn=self._folder / line["picture"])
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            self._keep(row)
        self._append("".join(lines))

    def add_broken(self, number: int, source: str, reason: str) -> None:
        """Notes that a sample could not be read; once for each."""
        if number not in self.broken:
            self.broken[number] = f"{source}: {reason}"
            line = {"number": number, "source": source, "broken": reason}
            self._append(json.dumps(line, ensure_ascii=False) + "\n")

    def _check_run(self, run: dict[str, Any]) -> None:
        path = self._folder / _RUN
        if not path.exists():
            path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
            return
        kept = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in kept | run if kept.get(name) != run.get(name))
        if changed:
            expected = f"those of {path}"
            got = f"others of {', '.join(changed)}"
            raise ValueError(f"settings: expected {expected}, got {got}; use another folder")

    def _read(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            # Killed while it wrote.
            self._path.write_bytes(whole)
        for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
            try:
                fields = parse_json(line)
                if "broken" in fields:
                    self.broken[fields["number"]] = f"{fields['source']}: {fields['broken']}"
                else:
                    self._keep(self._from_plain(fields))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path}:{number}: expected an answer, got {error}"
                ) from error

    def _keep(self, row: Answered) -> None:
        self.rows.append(row)
        self._done.add((row.asked.part, row.asked.number, row.asked.turn))

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _save(self, row: Answered) -> str:
        asked = row.asked
        name = f"{_PICTURES}/{asked.part}-{asked.number:08d}-{asked.turn}.png"
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        row.picture.save(path)
        return name

    def _from_plain(self, line: dict[str, Any]) -> Answered:
        names = ("part", "number", "turn", "source", "facts")
        asked = Asked(*(line[name] for name in names), (), _mask(line["target"]))
        drawn = None if line["picture"] is None else self._folder / line["picture"]
        return Answered(asked, line["said"], drawn, _mask(line["mask"]))


def _to_plain(row: Answered) -> dict[str, Any]:
    asked = row.asked
    return {
        "part": asked.part,
        "number": asked.number,
        "turn": asked.turn,
        "source": asked.source,
        "said": row.said,
        "picture": None,
        "mask": None if row.mask is None else encode_rle(row.mask),
        "target": None if asked.target is None else encode_rle(asked.target),
        "facts": asked.facts,
    }


def _mask(code: dict[str, Any] | None) -> np.ndarray | None:
    return None if code is None else decode_rle(code)
