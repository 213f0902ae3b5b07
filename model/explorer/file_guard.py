"""Refuses events that name files other than uploads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The values of all controls take a few kilobytes.
_MAX_BODY = 2**20
_UPLOAD = "/gradio_api/upload"


class FileGuard:
    """ASGI middleware that lets events name files of one folder only.

    Gradio itself checks a file only where its value says that it is one (the key "meta"). Of any
    other value with a "path" it would open the file, and it would download a URL in its place.

    - 400: the body of a POST request is no JSON.
    - 403: a value in it names a file outside the folder.
    - 413: it is larger than any event of the page.

    Args:
        app: application behind the guard.
        folder: folder of the uploads.
    """

    def __init__(self, app: ASGIApp, folder: Path):
        self._app, self._folder = app, folder.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == _UPLOAD:
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            async for chunk in Request(scope, receive).stream():
                body += chunk
                if len(body) > _MAX_BODY:
                    break
        except ClientDisconnect:
            return
        refusal = self._refusal(body)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": bytes(body)}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    def _refusal(self, body: bytearray) -> PlainTextResponse | None:
        """Return the answer to an event that is refused."""
        if len(body) > _MAX_BODY:
            return PlainTextResponse("body: expected at most 1 MB, got more", status_code=413)
        try:
            values = [json.loads(body)] if body else []
        except (ValueError, RecursionError):
            return PlainTextResponse("body: expected JSON, got something else", status_code=400)
        while values:
            value = values.pop()
            if isinstance(value, dict):
                if not self._is_upload(value.get("path")):
                    return PlainTextResponse(
                        "path: expected an upload, got another file", status_code=403
                    )
                values += value.values()
            elif isinstance(value, list):
                values += value
        return None

    def _is_upload(self, path: Any) -> bool:
        """Return whether a path is in the folder, or there is none."""
        if path is None:
            return True
        try:
            # A URL is no absolute path, whatever follows in it.
            absolute = Path(path).is_absolute()
            return absolute and Path(path).resolve().is_relative_to(self._folder)
        except (OSError, RuntimeError, TypeError, ValueError):
            # No text, too long, a loop of links, or with a null character.
            return False
