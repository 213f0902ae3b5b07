"""Log of answers on disk, one line of JSON each, from which a killed run resumes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setokim.data.records import parse_json, read_json
from setokim.data.rle import decode_rle, encode_rle
from setokim.evaluation.prompting import Prompt, Response
from setokim.utils.files import replacing, sync, write_file
from setokim.utils.json_text import to_json

FILE = "predictions.jsonl"
_RUN = "run.json"
_IMAGE_FOLDER = "pictures"

_Key = tuple[str, int, int]


class AnswerLogError(ValueError):
    """Error for a folder whose answers cannot be used; the message names the file and the fault."""


class AnswerLog:
    """Log of the responses of a run in a folder.

    FOLDER/predictions.jsonl has a line for each answer, with its question and the facts for the
    metrics, and for each broken sample a line with "broken", the reason. Masks are COCO's run
    lengths, images are PNG files in a subfolder.

    Args:
        folder: folder of the log, created if missing.
        run: settings on which the answers depend, plain values; saved in FOLDER/run.json.

    Raises:
        AnswerLogError: the folder has answers of another run, or a malformed line.
        OSError: the folder cannot be read or written.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, Any]):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / FILE
        self._check_run(dict(run))
        self.rows: list[Response] = []
        self.broken: dict[int, str] = {}
        # Row and text of each answered question.
        self._done: dict[_Key, tuple[int, str]] = {}
        self._answered: set[int] = set()
        self._read()

    def __contains__(self, prompt: Prompt) -> bool:
        """Return whether the question has an answer."""
        return _key(prompt) in self._done

    def recall(self, prompt: Prompt) -> bool:
        """Return whether the question has an answer; if so, update its facts from `prompt`.

        The facts of a data set may have been corrected since the answer; the question itself must
        be the same.

        Raises:
            AnswerLogError: the answer is to another question.
        """
        if prompt not in self:
            return False
        index, text = self._done[_key(prompt)]
        if text != prompt.text:
            expected = f"{prompt.source}: expected the question that {self._path} answers, {text!r}"
            raise AnswerLogError(f"{expected}, got {prompt.text!r}; use another folder")
        self.rows[index] = dataclasses.replace(self.rows[index], prompt=_without_messages(prompt))
        return True

    def add(self, rows: Sequence[Response]) -> None:
        """Write responses; after the return they are on disk.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        lines = []
        for index, row in enumerate(rows := list(rows)):
            line = to_plain(row)
            if row.generated is not None:
                line["picture"] = self._save(row)
                # Keep the path only: thousands of images do not fit into memory.
                rows[index] = dataclasses.replace(row, generated=self._folder / line["picture"])
            lines.append(to_json(line) + "\n")
        self._append("".join(lines))
        for row in rows:
            self._keep(row, row.prompt.text)

    def add_broken(self, number: int, source: str, reason: str) -> None:
        """Log a sample that could not be read, once each, and not if it has answers."""
        if number not in self.broken and number not in self._answered:
            line = {"number": number, "source": source, "broken": reason}
            self._append(to_json(line) + "\n")
            self.broken[number] = f"{source}: {reason}"

    def _check_run(self, run: dict[str, Any]) -> None:
        path = self._folder / _RUN
        if not path.exists():
            if self._path.exists():
                expected = f"{path} with the settings of the answers"
                raise AnswerLogError(f"expected {expected}, got {FILE} alone; use another folder")
            write_file(path, to_json(run, indent=2) + "\n")
            return
        try:
            saved = read_json(path)
        except (ValueError, RecursionError) as error:
            raise AnswerLogError(f"{error}; use another folder") from error
        if not isinstance(saved, dict):
            raise AnswerLogError(f"{path}: expected an object, got {saved!r:.80}")
        changed = sorted(name for name in saved | run if saved.get(name) != run.get(name))
        if changed:
            expected = f"those of {path}"
            got = f"others of {', '.join(changed)}"
            raise AnswerLogError(f"settings: expected {expected}, got {got}; use another folder")

    def _read(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            # The run was killed while writing.
            os.truncate(self._path, len(whole))
            sync(self._path)
        # Not by splitlines: an answer may hold other line separators.
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                self._load_line(parse_json(line.decode("utf-8")))
            except (ValueError, KeyError, TypeError) as error:
                got = f"no {error}" if isinstance(error, KeyError) else error
                raise AnswerLogError(f"{self._path}:{number}: expected an answer, got {got}") from (
                    error
                )

    def _load_line(self, line: Any) -> None:
        """Add a line of the file to the rows or the broken samples."""
        if not isinstance(line, dict):
            raise ValueError(f"{line!r:.80}")
        if "broken" in line:
            if line["number"] not in self._answered:
                self.broken[line["number"]] = f"{line['source']}: {line['broken']}"
            return
        row = self._from_plain(line)
        if row.prompt in self:
            raise ValueError(f"a second answer to question {_key(row.prompt)}")
        self._keep(row, line["asked"])

    def _keep(self, row: Response, text: str) -> None:
        self._done[_key(row.prompt)] = len(self.rows), text
        self._answered.add(row.prompt.number)
        # The sample has become readable.
        self.broken.pop(row.prompt.number, None)
        self.rows.append(dataclasses.replace(row, prompt=_without_messages(row.prompt)))

    def _append(self, text: str) -> None:
        is_new = not self._path.exists()
        with self._path.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self._folder)

    def _save(self, row: Response) -> str:
        prompt = row.prompt
        name = f"{_IMAGE_FOLDER}/{prompt.part}-{prompt.number:08d}-{prompt.turn}.png"
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as beside:
            row.image.save(beside)
        return name

    def _from_plain(self, line: dict[str, Any]) -> Response:
        for name, kind in {"said": str, "asked": str, "facts": dict}.items():
            if not isinstance(line[name], kind):
                raise ValueError(f"{name}: expected {kind.__name__}, got {line[name]!r:.80}")
        names = ("part", "number", "turn", "source", "facts")
        prompt = Prompt(*(line[name] for name in names), (), _mask(line["target"]))
        generated = None if line["picture"] is None else self._folder / line["picture"]
        return Response(prompt, line["said"], generated, _mask(line["mask"]))


def to_plain(row: Response) -> dict[str, Any]:
    """Return a response as a line of the log, but for its generated image."""
    prompt = row.prompt
    return {
        "part": prompt.part,
        "number": prompt.number,
        "turn": prompt.turn,
        "source": prompt.source,
        "asked": prompt.text,
        "said": row.text,
        "picture": None,
        "mask": None if row.mask is None else encode_rle(row.mask),
        "target": None if prompt.target is None else encode_rle(prompt.target),
        "facts": prompt.facts,
    }


def _mask(code: dict[str, Any] | None) -> np.ndarray | None:
    return None if code is None else decode_rle(code)


def _key(prompt: Prompt) -> _Key:
    return prompt.part, prompt.number, prompt.turn


def _without_messages(prompt: Prompt) -> Prompt:
    """Return the prompt without its images, thousands of which do not fit into memory."""
    return dataclasses.replace(prompt, messages=())
