"""The explorer's server under requests that its page would not send."""

import contextlib
import http.server
import os
import socket
import stat
import threading
from pathlib import Path

import gradio
import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from setokim.explorer import server
from setokim.explorer.file_guard import FileGuard
from setokim.explorer.images import MAX_UPLOAD
from setokim.explorer.request_guard import RequestGuard

API = "/gradio_api"
META = {"_type": "gradio.FileData"}
SECRET = b"not for visitors"


class Visitor:
    """Client of a running explorer that sends what the page would send, or something else."""

    def __init__(self, address):
        self.address, self.port = address, httpx.URL(address).port
        self.client = httpx.Client(base_url=address, timeout=20)
        self.config = self.client.get("/config").json()
        self._ids = {c["props"].get("elem_id"): c["id"] for c in self.config["components"]}
        self._props = {c["id"]: c["props"] for c in self.config["components"]}

    def event(self, elem_id, trigger, **values):
        """Return the body of an event, the values of other controls as at the start."""
        target = [self._ids[elem_id], trigger]
        [event] = [
            e for e in self.config["dependencies"] if target in e["targets"] and e["backend_fn"]
        ]
        data = []
        for identifier in event["inputs"]:
            props = self._props[identifier]
            data.append(values.get(props.get("elem_id"), props.get("value")))
        return {"fn_index": event["id"], "data": data, "session_hash": "visitor"}

    def send(self, *target, **values):
        """Send an event and return the answer."""
        return self.client.post(f"{API}/run/predict", json=self.event(*target, **values))

    def upload(self, content, name="image.png"):
        """Upload a file and return its path on the server."""
        answer = self.client.post(f"{API}/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return answer.json()[0]


@pytest.fixture(scope="module")
def visitor(features):
    with server.serve(features) as address:
        visitor = Visitor(address)
        yield visitor
        visitor.client.close()


@pytest.fixture(scope="module")
def folder(visitor):
    return Path(os.environ["GRADIO_TEMP_DIR"])


@pytest.fixture
def neighbour(own_file):
    """File beside the image of the command line."""
    path = own_file.with_name("neighbour.txt")
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def other(own_file):
    """Another server of this machine: its port, and the requests it has had."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(own_file.read_bytes())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield listener.server_address[1], requests
        listener.shutdown()
        thread.join()


@contextlib.contextmanager
def occupied():
    """A port of this machine at which someone listens."""
    with socket.socket() as listener:
        listener.bind((server.LOOPBACK, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_page_and_events_are_answered(visitor, own_file):
    assert visitor.client.get("/").status_code == 200
    values = {"image": "astronaut", "A-cluster_tokens-max_clusters": 5}
    answer = visitor.send("A-cluster_tokens-max_clusters", "input", **values)
    assert answer.status_code == 200, answer.text
    assert "image=astronaut" in answer.text
    path = visitor.upload(own_file.read_bytes())
    answer = visitor.send("upload", "upload", upload={"path": path, "meta": META})
    assert answer.status_code == 200, answer.text
    assert "image=upload-" in answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "localhost:1"])
def test_own_names_are_answered(visitor, host):
    answer = visitor.client.get("/config", headers={"Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:7860",
        "localhost.example",
        "127.0.0.1.example",
        "user@localhost",
        "10.0.0.1",
        "localhost:",
        "localhost:x",
        "[::1",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", f"{API}/upload"])
def test_foreign_names_are_refused(visitor, host, path):
    answer = visitor.client.get(path, headers={"Host": host})
    assert answer.status_code == 400
    assert len(answer.text) < 100


def test_request_without_or_with_two_host_headers_is_refused(visitor):
    for headers in (b"", b"Host: localhost\r\nHost: rebound.example\r\n"):
        with socket.create_connection((server.LOOPBACK, visitor.port), timeout=10) as connection:
            connection.sendall(b"GET /config HTTP/1.0\r\n" + headers + b"\r\n")
            assert b" 400 " in connection.makefile("rb").readline()


@pytest.mark.parametrize(
    ("host", "own", "foreign"),
    [
        ("0.0.0.0", ["192.168.1.2", "[fe80::1]:80", socket.gethostname()], ["a.example", "1.2.3"]),
        ("::", ["192.168.1.2:7860", "[::1]", "localhost"], ["a.example"]),
        ("192.168.1.2", ["192.168.1.2:7860", "localhost"], ["192.168.1.3", "0.0.0.0"]),
        ("lab.example", ["lab.example:7860", "LAB.example"], ["192.168.1.2", "b.lab.example"]),
    ],
)
def test_other_listening_addresses_have_their_own_names(host, own, foreign):
    client = TestClient(RequestGuard(PlainTextResponse("answer"), host))
    for name in own:
        assert client.get("/", headers={"Host": name}).text == "answer", name
    for name in foreign:
        assert client.get("/", headers={"Host": name}).status_code == 400, name


def test_foreign_origins_are_refused(visitor, own_file, folder):
    before = {*folder.rglob("*")}
    files = {"files": ("image.png", own_file.read_bytes() + b"foreign")}
    port = visitor.port
    for origin in (
        "http://evil.example",
        f"http://evil.example:{port}",
        f"http://127.0.0.1:{port + 1}",
        f"http://localhost:{port}",
        "http://127.0.0.1",
        f"ftp://127.0.0.1:{port}",
        f"http://127.0.0.1:{port}.example",
        f"http://evil@127.0.0.1:{port}",
        "null",
        "",
    ):
        headers = {"Origin": origin}
        answer = visitor.client.post(f"{API}/upload", files=files, headers=headers)
        assert answer.status_code == 403, origin
        body = visitor.event("view", "input", image="astronaut")
        for call in ("run/predict", "queue/join"):
            answer = visitor.client.post(f"{API}/{call}", json=body, headers=headers)
            assert answer.status_code == 403, origin
    assert {*folder.rglob("*")} == before


def test_own_origin_is_answered(visitor):
    body = visitor.event("view", "input", image="astronaut")
    headers = {"Origin": f"http://127.0.0.1:{visitor.port}"}
    answer = visitor.client.post(f"{API}/run/predict", json=body, headers=headers)
    assert answer.status_code == 200
    client = TestClient(RequestGuard(PlainTextResponse("answer"), "lab.example"))
    # Behind a proxy with TLS, on the ports that go without saying.
    for origin, host in (
        ("https://lab.example", "lab.example"),
        ("https://lab.example", "lab.example:443"),
        ("http://LAB.example:80", "lab.example"),
    ):
        answer = client.get("/", headers={"Origin": origin, "Host": host})
        assert answer.text == "answer", (origin, host)


@pytest.mark.parametrize(
    "path",
    [
        "file=http://127.0.0.1:{port}/a",
        "file=http:127.0.0.1:{port}/a",
        "file=HTTP://127.0.0.1:{port}/a",
        "file=http%3A%2F%2F127.0.0.1:{port}/a",
        "file=%68ttp://127.0.0.1:{port}/a",
        "file=http%253A%252F%252F127.0.0.1:{port}/a",
        "file=%20http://127.0.0.1:{port}/a",
        "file%3Dhttp://127.0.0.1:{port}/a",
        "file/http://127.0.0.1:{port}/a",
        "proxy=http://127.0.0.1:{port}/a",
        "proxy=https://space.hf.space/a",
        "file=https://example.com/",
    ],
)
def test_no_request_goes_to_another_server(visitor, other, path):
    port, requests = other
    answer = visitor.client.get(f"{API}/{path.format(port=port)}")
    assert answer.status_code in (403, 404)
    assert not requests


@pytest.mark.parametrize(
    "path",
    [
        "deep_link?session_hash=visitor",
        "deep%5Flink?session_hash=visitor",
        "custom_component/a/client/b/c",
        "proxy=http://localhost",
    ],
)
def test_unused_endpoints_are_closed(visitor, capfd, path):
    answer = visitor.client.get(f"{API}/{path}")
    assert answer.status_code == 404
    captured = capfd.readouterr()
    assert not captured.out + captured.err


@pytest.mark.parametrize("path", ["component_server", "process_recording"])
def test_unused_calls_are_closed(visitor, path):
    assert visitor.client.post(f"{API}/{path}", json={}).status_code == 404


def test_files_outside_the_folder_are_not_served(visitor, folder, own_file, neighbour):
    link, inner = folder / "link.png", folder / "links"
    link.symlink_to(own_file)
    inner.symlink_to(own_file.parent)
    try:
        outside = [
            Path("/etc/passwd"),
            own_file,
            neighbour,
            Path(server.__file__),
            Path(gradio.__file__),
            link,
            inner / neighbour.name,
            folder.parent,
            folder / ".." / ".." / "etc" / "passwd",
        ]
        for path in outside:
            text = str(path)
            for form in (
                text,
                text.replace("/", "%2F"),
                text.replace("/", "%252F"),
                "file://" + text,
                "file%3A%2F%2F" + text,
                text + "%00.png",
                f"{folder}{'/..' * 9}{text}",
                f"{folder}{'%2F%2E%2E' * 9}{text}",
                "../" * 9 + text[1:],
                "..%2F" * 9 + text[1:],
            ):
                for endpoint in ("file=", "file/"):
                    url = f"{visitor.address}gradio_api/{endpoint}{form}"
                    answer = visitor.client.get(url)
                    assert answer.status_code in (400, 403, 404), (url, answer.status_code)
                    assert SECRET not in answer.content
        for prefix in ("/static/", "/assets/", "/svelte/"):
            for up in ("../" * 12, "..%2F" * 12, "%2E%2E/" * 12, "/"):
                answer = visitor.client.get(f"{prefix}{up}etc/passwd")
                assert answer.status_code in (400, 403, 404)
    finally:
        link.unlink()
        inner.unlink()


def raw_status(port, target):
    """Return the status of a request whose target is sent as it is."""
    with socket.create_connection((server.LOOPBACK, port), timeout=10) as connection:
        connection.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])


def test_dots_that_clients_would_remove_lead_nowhere(visitor, folder, neighbour):
    up = "/.." * 9
    for target in (
        f"{API}/file={folder}{up}{neighbour}",
        f"{API}/file={up[1:]}/etc/passwd",
        f"/static{up}/etc/passwd",
        f"/assets{up}/etc/passwd",
        f"{API}{up}/etc/passwd",
        f"http://localhost{API}/file=/etc/passwd",
    ):
        assert raw_status(visitor.port, target) in (400, 403, 404), target


def forged(folder, own_file, upload, port):
    """Return values of the upload that name something else than an upload."""
    link = folder / "forged.png"
    if not link.is_symlink():
        link.symlink_to(own_file)
    paths = [
        "/etc/passwd",
        str(own_file),
        f"{upload}/../../..{own_file}",
        f"file://{own_file}",
        str(link),
        f"http://127.0.0.1:{port}/a.png",
        f"http://localhost:{port}/a.png",
        f"HTTP://127.0.0.1:{port}/a.png",
        # As a path this is the upload.
        f"http://127.0.0.1:{port}{'/..' * 30}{upload}",
        f"{upload}\0",
        "/" + "a" * 5000,
        "",
        7,
        [str(own_file)],
    ]
    for path in paths:
        yield {"path": path}
        yield {"path": path, "meta": META}
        yield {"path": path, "meta": META, "url": f"http://127.0.0.1:{port}/a.png"}
        yield [{"nested": {"path": path}}]


def test_forged_events_read_nothing(visitor, folder, own_file, other):
    port, requests = other
    upload = visitor.upload(own_file.read_bytes())
    for value in forged(folder, own_file, upload, port):
        for control in ("upload", "image", "view"):
            values = {"image": "astronaut", control: value}
            body = visitor.event("upload", "upload", **values)
            for call in ("run/predict", "api/predict", "queue/join", "call/telling"):
                answer = visitor.client.post(f"{API}/{call}", json=body)
                assert answer.status_code == 403, (call, value)
    assert not requests


def test_url_beside_the_path_is_not_requested(visitor, own_file, other):
    port, requests = other
    path = visitor.upload(own_file.read_bytes())
    url = f"http://127.0.0.1:{port}/a.png"
    for value in (
        {"path": path, "meta": META, "url": url},
        {"path": None, "meta": META, "url": url},
        {"url": url},
        url,
    ):
        answer = visitor.send("upload", "upload", image="astronaut", upload=value)
        assert answer.status_code in (200, 403, 500)
    assert not requests


@pytest.mark.parametrize("key", ["/etc/passwd", "../own image.png", "upload-" + "0" * 32, ["a"], 7])
def test_forged_keys_name_no_image(visitor, key):
    answer = visitor.send("image", "input", image=key)
    assert answer.status_code == 500
    assert "error" in answer.json()
    assert "/site-packages" not in answer.text


def test_bodies_of_events_are_checked():
    client = TestClient(FileGuard(PlainTextResponse("answer"), Path("/tmp")))
    for body, status in (
        (b"", 200),
        (b"{}", 200),
        (b'{"path": null}', 200),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"path": "/etc", "path": "/tmp/a"}', 200),
        (b'{"path": "/tmp/a", "path": "/etc"}', 403),
        (b'{"a": [[{"p\\u0061th": "\\/etc"}]]}', 403),
        (b" " * 2**20 + b"{}", 413),
    ):
        assert client.post(f"{API}/run/predict", content=body).status_code == status, body[:50]


def test_names_of_uploads_lead_nowhere(visitor, folder, own_file):
    content = own_file.read_bytes()
    for name in ("../../x.png", "/etc/x.png", "..\\..\\x.png", "a/../../../x.png", "..", "\0.png"):
        answer = visitor.client.post(f"{API}/upload", files={"files": (name, content)})
        if answer.status_code == 200:
            [path] = answer.json()
            assert Path(path).resolve().is_relative_to(folder.resolve()), name
            assert Path(path).read_bytes() == content
    assert not [*folder.parent.glob("x.png"), *folder.parent.parent.glob("x.png")]
    assert not Path("/etc/x.png").exists()


def test_large_upload_is_refused(visitor, folder):
    before = {*folder.rglob("*")}
    files = {"files": ("large.png", bytes(MAX_UPLOAD + 1))}
    answer = visitor.client.post(f"{API}/upload", files=files)
    assert answer.status_code == 413
    assert {*folder.rglob("*")} == before


def test_no_endpoint_is_listed(visitor):
    listed = visitor.client.get(f"{API}/info").json()
    assert listed == {"named_endpoints": {}, "unnamed_endpoints": {}}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc/net/tcp of Linux")
def test_only_the_loopback_address_is_listened_at(visitor):
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            listening |= {
                row[1] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == visitor.port
            }
    assert listening == {f"0100007F:{visitor.port:04X}"}
    with socket.socket() as connection:
        assert connection.connect_ex(("127.0.0.2", visitor.port)) != 0


def test_folder_is_private(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("raised", [None, ZeroDivisionError, KeyboardInterrupt])
def test_nothing_is_left_afterwards(features, own_file, monkeypatch, raised):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "as before")
    ended = contextlib.nullcontext() if raised is None else pytest.raises(raised)
    with ended, server.serve(features) as address:
        visitor = Visitor(address)
        path = Path(visitor.upload(own_file.read_bytes()))
        visitor.client.close()
        made = Path(os.environ["GRADIO_TEMP_DIR"])
        assert path.is_relative_to(made)
        if raised is not None:
            raise raised
    assert not made.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "as before"
    assert server.free_port(server.LOOPBACK, visitor.port) == visitor.port


def test_port_in_use_is_named(features):
    with occupied() as port:
        with pytest.raises(ValueError, match=f"port: expected a free one, got {port}, .*in use"):
            server.free_port(server.LOOPBACK, port)
        with (
            pytest.raises(ValueError, match=f"got {port}"),
            server.serve(features, port=port),
        ):
            pytest.fail("It serves at a port in use.")


def test_first_free_port_is_taken(monkeypatch):
    assert server.FIRST_PORT == 7860
    with occupied() as port:
        monkeypatch.setattr(server, "FIRST_PORT", port)
        chosen = server.free_port(server.LOOPBACK)
        assert port < chosen < port + server.PORTS
        # All between are taken too.
        for number in range(port + 1, chosen):
            with pytest.raises(ValueError, match="expected a free one"):
                server.free_port(server.LOOPBACK, number)
        monkeypatch.setattr(server, "PORTS", 1)
        with pytest.raises(ValueError, match=f"from {port} to {port}, got none"):
            server.free_port(server.LOOPBACK)


def test_a_port_taken_since_it_was_free(features, monkeypatch):
    free = server.free_port(server.LOOPBACK)
    with occupied() as taken:
        found = iter([free, taken, taken, free])
        monkeypatch.setattr(server, "free_port", lambda host, port=None: next(found))
        with server.serve(features) as address:
            assert address == f"http://127.0.0.1:{free}/"
            assert httpx.get(address).status_code == 200
        for wanted, tried in ((None, [taken] * 4), (taken, [taken] * 2)):
            found = iter(tried)
            message = f"^port: expected a free one, got {taken}, where no server started$"
            with (
                pytest.raises(ValueError, match=message),
                server.serve(features, port=wanted),
            ):
                pytest.fail("It serves at a port in use.")
            assert next(found, None) is None


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_numbers_that_are_no_ports_are_refused(port):
    with pytest.raises(ValueError, match=f"port: expected 1 to 65535, got {port}"):
        server.free_port(server.LOOPBACK, port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70, "a..b"])
def test_hosts_that_are_no_addresses_are_refused(host):
    with pytest.raises(ValueError, match="host: expected an address of this machine"):
        server.free_port(host)
