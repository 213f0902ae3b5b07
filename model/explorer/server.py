"""The explorer's server, on this machine alone unless told otherwise."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from setokim.explorer.features import Features
from setokim.explorer.file_guard import FileGuard
from setokim.explorer.images import MAX_UPLOAD
from setokim.explorer.layout import CSS, THEME
from setokim.explorer.page import build_page
from setokim.explorer.request_guard import RequestGuard

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
# Ports tried one after another where none was asked for.
_ATTEMPTS = 3


@contextlib.contextmanager
def serve(features: Features, host: str = LOOPBACK, port: int | None = None) -> Iterator[str]:
    """Serve the page from threads of this process until the block ends.

    Uploads go to a folder of this process alone, which is removed at the end. No other file of the
    machine can be read through the page, see `FileGuard`. Requests of other pages are refused, see
    `RequestGuard`.

    Args:
        features: images and their clusterings.
        host: address to listen at; the default can be reached from this machine only.
        port: number of the port, from 1 to 65535; None for the first free one from 7860 on.

    Yields:
        The address of the page.

    Raises:
        ValueError: the port is in use or may not be used, or there is no such address.
    """
    # Before the page, which takes a while.
    free_port(host, port)
    with _private_folder():
        page = build_page(features)
        try:
            number = _listen(page, host, port)
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{number}/"
        finally:
            page.close(verbose=False)


def _listen(page: gr.Blocks, host: str, port: int | None) -> int:
    """Launch a page on a port of the machine, and return the port.

    Raises:
        ValueError: as `serve` does.
    """
    attempts = _ATTEMPTS if port is None else 1
    while True:
        number = free_port(host, port)
        attempts -= 1
        try:
            launch(
                page,
                [Middleware(RequestGuard, host=host)],
                server_name=host,
                server_port=number,
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError as error:
            # Another process has taken the port since, or the server took more than 5 s to start:
            # Gradio raises the same.
            if attempts == 0:
                raise ValueError(
                    f"port: expected a free one, got {number}, where no server started"
                ) from error
        else:
            return number


def launch(page: gr.Blocks, guards: Sequence[Middleware] = (), **options: object) -> None:
    """Launch a page of `build_page` with its looks and limits, and with `FileGuard`.

    Args:
        page: the page.
        guards: further middleware.
        options: further arguments of `gradio.Blocks.launch`.
    """
    folder = Path(get_upload_folder())
    defaults = {
        "app_kwargs": {"middleware": [*guards, Middleware(FileGuard, folder=folder)]},
        "theme": THEME,
        "css": CSS,
        "footer_links": [],
        "max_file_size": MAX_UPLOAD,
        "share": False,
        "show_error": True,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "run_history": False,
    }
    page.launch(**{**defaults, **options})  # type: ignore[arg-type]


def free_port(host: str, port: int | None = None) -> int:
    """Return a port on which this process can listen.

    Raises:
        ValueError: it cannot on the port asked for, or there is no such address.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port: expected 1 to 65535, got {port}")
    tried = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"host: expected an address of this machine, got {host!r}: {error}"
        ) from error
    for number in tried:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, number))
                return number
            except OSError as error:
                reason = error.strerror or str(error)
                if number == tried[-1]:
                    break
    if port is None:
        raise ValueError(
            f"port: expected a free one from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}, got none at "
            f"{host}: {reason}"
        )
    raise ValueError(f"port: expected a free one, got {port}, which cannot be used: {reason}")


@contextlib.contextmanager
def _private_folder() -> Iterator[None]:
    """Let Gradio keep its files in a folder that only this user can read, and remove it."""
    name = "GRADIO_TEMP_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="setok-explore-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
