"""Applications of Gradio that run while a test visits them: in this process, or as a command."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import threading

from helpers.processes import wait_until


@contextlib.contextmanager
def served_blocks(blocks, **options):
    """Serve a `gr.Blocks` on a free port of this machine; yield its URL.

    Args:
        blocks: the application; closed at the end.
        options: further options of its `launch`.
    """
    fixed = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
    try:
        yield blocks.launch(**fixed | options)[1]
    finally:
        blocks.close(verbose=False)


@dataclasses.dataclass
class Served:
    """A command that serves.

    Attributes:
        process: the process.
        lines: what it has written so far, errors included.
        url: the first URL among that.
    """

    process: subprocess.Popen
    lines: list
    url: str = ""


@contextlib.contextmanager
def served_command(command, seconds=60.0, **options):
    """Start a command that serves, and wait for the URL on its output; interrupt it at the end.

    Args:
        command: the program and its arguments.
        seconds: time for the URL to come, and for the end after the interrupt.
        options: further options of `subprocess.Popen`.
    """
    environment = options.pop("env", os.environ) | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        **options,
    )
    served = Served(process, [])
    # A full pipe would stop the process, so it is read to the end.
    reader = threading.Thread(target=lambda: served.lines.extend(process.stdout))
    reader.start()
    try:
        served.url = wait_until(lambda: _url(served), seconds)
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(seconds)
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()


def _url(served):
    for line in list(served.lines):
        if found := re.search(r"https?://[\w.:\[\]-]+/?", line):
            return found[0]
    said = "".join(served.lines)
    assert served.process.poll() is None, (
        f"ended without a URL, code {served.process.poll()}: {said}"
    )
    return None
