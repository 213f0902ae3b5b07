"""Refuses requests to the explorer's server that do not come from its own page."""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_API = "/gradio_api/"
# Endpoints of Gradio that the page does not use: the state of another session under a link, files
# of components (their names go to the terminal), functions of components, requests to other hosts,
# and recordings.
_CLOSED = re.compile(
    _API + r"(deep_link|custom_component|component_server|proxy=|process_recording).*", re.DOTALL
)
# With a URL in place of a path, Gradio requests it and passes the answer on.
_RELAY = re.compile(_API + r"file[=/]\s*https?:.*", re.DOTALL | re.IGNORECASE)
_HOST = re.compile(
    r"(?P<name>\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)
_PORTS = {"http": 80, "https": 443}


class RequestGuard:
    """ASGI middleware that refuses three kinds of requests.

    - 400: the Host header names another machine. A foreign page whose name was made to resolve to
      this machine (DNS rebinding) could read the answers otherwise.
    - 403: the Origin header names another host than the Host header. Browsers send uploads and
      calls of foreign pages too; they only keep the answers from them.
    - 404: the endpoint is one of Gradio's that the page does not use.

    Args:
        app: application behind the guard.
        host: address that the server listens at.
    """

    def __init__(self, app: ASGIApp, host: str):
        self._app = app
        self._names = {_canonical(name) for name in (host, "localhost", "127.0.0.1", "::1")}
        self._any_address = _is_wildcard(host)
        if self._any_address:
            own = (socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn())
            self._names |= {_canonical(name) for name in own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        """Return the answer to a request that is refused."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return PlainTextResponse(
                "Host: expected the address that setok explore has printed", status_code=400
            )
        origins = headers.getlist("origin")
        if any(not _same_host(origin, hosts[0]) for origin in origins):
            return PlainTextResponse(
                "Origin: expected the explorer's own page, got another one", status_code=403
            )
        # The server has decoded the path, once, as the endpoints see it.
        path = scope["path"]
        if _CLOSED.fullmatch(path) or _RELAY.fullmatch(path):
            return PlainTextResponse("Not Found", status_code=404)
        return None

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header names this machine."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = _canonical(match["name"])
        # No name has to resolve for an address: there is nothing to rebind.
        return name in self._names or (self._any_address and _address(name) is not None)


def _same_host(origin: str, host: str) -> bool:
    """Return whether an Origin header has name and port of a Host header."""
    scheme, _, place = origin.partition("://")
    if scheme not in _PORTS:
        # That of a sandboxed frame is "null".
        return False
    here, there = (_name_and_port(text, _PORTS[scheme]) for text in (host, place))
    return here is not None and here == there


def _name_and_port(text: str, default: int) -> tuple[str, int] | None:
    match = _HOST.fullmatch(text)
    return match and (_canonical(match["name"]), int(match["port"] or default))


def _canonical(name: str) -> str:
    """Return the name of a host in lower case, or its address without brackets."""
    address = _address(name)
    return name.lower() if address is None else str(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _is_wildcard(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_unspecified
