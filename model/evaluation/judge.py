"""Scores of free answers by a language model behind an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from setokim.utils.json_text import to_json

# Variable of the environment with the key of the server; without it none is sent.
KEY = "OPENAI_API_KEY"
CACHE = "judgements.jsonl"
PROMPT = """\
You grade answers about an image by comparing them with a reference. Give a grade from 0.0 (nothing
is right) to 1.0 (all is right) in steps of 0.1. If parts of the reference are joined by <AND>, the
answer needs all of them; if by <OR>, one of them is enough. Reply with the grade alone.

question | reference | answer | grade
How many legs has the dog? | 4 | It has four legs. | 1.0
How many legs has the dog? | 4 | Three | 0.0
Which fruits are there? | an apple <AND> a pear | There is a pear. | 0.5
Which fruit is it? | a lemon <OR> a lime | a lime | 1.0"""
_GRADE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)(?![\d.]*\d)")
# Of servers that are busy or restarting.
_AGAIN = (408, 409, 429)


class JudgeError(RuntimeError):
    """Error for a judge that gives no score; those that it has given are kept."""


class Judge:
    """Judge for `mm_vet_scores`: each answer is sent once, and its score is kept on disk.

    The prompt ends with a line "question | reference | answer | ", as in the official evaluation,
    whose own prompt with its examples and judge (GPT-4) published values are of.

    Args:
        url: base URL of the server, such as "http://localhost:8000/v1".
        model: name of the model.
        cache: file of the scores, lines of JSON; a killed run resumes from it.
        prompt: instruction and examples.
        retries: number of further attempts after a failure.
        wait: seconds before the first of them, doubled each time.
        timeout: seconds until a request fails.

    Raises:
        OSError: the cache cannot be read or written.
        ValueError: the URL is no HTTP one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path,
        prompt: str = PROMPT,
        retries: int = 5,
        wait: float = 1.0,
        timeout: float = 120.0,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http://… or https://…, got {url!r}")
        self._url, self._model, self._prompt = f"{url.rstrip('/')}/chat/completions", model, prompt
        self._retries, self._wait, self._timeout = retries, wait, timeout
        self._cache, self._scores = cache, _read(cache)

    def __call__(self, question: str, reference: str, answer: str) -> float:
        """Return the score of an answer, from 0 to 1.

        Args:
            question: question about an image.
            reference: right answer, perhaps of several parts joined by "<AND>" or "<OR>".
            answer: answer of the model.

        Raises:
            JudgeError: the server fails, or its replies are no scores.
            OSError: the cache cannot be written.
        """
        for sign in ("<AND>", "<OR>"):
            reference = reference.replace(sign, f" {sign} ")
        text = f"{self._prompt}\n{' | '.join((question, reference, answer, ''))}"
        key = hashlib.sha256(to_json([self._model, text]).encode()).hexdigest()
        if key not in self._scores:
            reply, score = self._ask(text)
            line = {"key": key, "model": self._model, "answer": answer, "reply": reply}
            with self._cache.open("a", encoding="utf-8") as file:
                file.write(to_json(line | {"score": score}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._scores[key] = score
        return self._scores[key]

    def _ask(self, text: str) -> tuple[str, float]:
        wait = self._wait
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                reply = self._send(text)
            except _Retry as error:
                reason = str(error)
                continue
            found = _GRADE.match(reply)
            if found is not None and float(found[1]) <= 1:
                return reply, float(found[1])
            reason = f"expected a score from 0 to 1, got {reply!r:.80}"
        raise JudgeError(f"{self._url}: {reason}, in {self._retries + 1} attempts")

    def _send(self, text: str) -> str:
        """Return the reply of the server.

        Raises:
            JudgeError: the server refuses the request.
            _Retry: it fails in a way that may pass.
        """
        body = {"model": self._model, "messages": [{"role": "user", "content": text}]}
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        data = to_json(body | {"temperature": 0}).encode()
        request = urllib.request.Request(self._url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return _text(json.loads(response.read()))
        except urllib.error.HTTPError as error:
            reason = f"{error}: {error.read(500).decode('utf-8', 'replace')}"
            if error.code in _AGAIN or error.code >= 500:
                raise _Retry(reason) from error
            raise JudgeError(f"{self._url}: {reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Retry(f"{type(error).__name__}: {error}") from error


class _Retry(Exception):
    """Failure that may pass."""


def _text(reply: Any) -> str:
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"expected a chat completion, got {reply!r:.200}") from error
    if not isinstance(text, str):
        raise ValueError(f"expected a text in the chat completion, got {text!r:.200}")
    return text


def _read(path: Path) -> dict[str, float]:
    """Read the scores; a last line without an end, of a run that was killed, is removed."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    found = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            found[record["key"]] = float(record["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(f"{path}:{number}: expected a score, got {line[:80]!r}") from error
    return found
