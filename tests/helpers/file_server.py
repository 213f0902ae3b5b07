"""A web server on this machine for files of a folder, which may misbehave."""

import contextlib
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send_head(self):
        server = self.server
        server.requests.append((self.command, self.path))
        name = self.path.lstrip("/")
        if name in server.statuses:
            self.send_error(server.statuses[name])
            return None
        return super().send_head()

    def copyfile(self, source, outputfile):
        name = self.path.lstrip("/")
        limit = self.server.cuts.get(name)
        if limit is None:
            super().copyfile(source, outputfile)
            return
        outputfile.write(source.read(limit))
        self.server.reached.set()
        self.server.stall.wait(30)
        self.close_connection = True


@contextlib.contextmanager
def served(folder):
    """Serve a folder; yield its URL and the server.

    `requests` of the server are methods and paths, `statuses` the answers for some names, `cuts`
    the bytes after which the connection is closed, once the event `stall` is set.
    """
    pytest.importorskip("aiohttp")  # the client's side
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder))
    )
    server.daemon_threads = True
    server.requests, server.statuses, server.cuts = [], {}, {}
    server.stall, server.reached = threading.Event(), threading.Event()
    server.stall.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.stall.set()
        server.shutdown()
        thread.join()
        server.server_close()
