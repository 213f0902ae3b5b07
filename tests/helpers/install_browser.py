"""Install a browser for tests where there is none; `make browser` runs it.

It takes the package `chromium` of the system, as root or with a sudo that asks for no password, or
else Playwright's own. Where neither can be had it says so, and that is no error: those tests are
skipped.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time

from helpers.browser import REQUIRED, find_browser

ENVIRONMENT = ["env", "DEBIAN_FRONTEND=noninteractive"]
# A mirror that does not answer counts as none.
APT = ["apt-get", "-qq", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20"]
INSTALL = ["install", "--yes", "--no-install-recommends"]


def run(command, seconds=None):
    """Run a command with its children for at most some seconds; return whether it succeeded."""
    print("browser:", *command, flush=True)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        print(f"browser: stopped after {seconds:.0f} s", flush=True)
        return False
    finally:
        # Apart from a time limit only an interrupt leaves something to end.
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except PermissionError:
                # What sudo has started belongs to root.
                subprocess.run(["sudo", "--non-interactive", "kill", "-KILL", f"-{process.pid}"])
            process.wait()


def as_root():
    """Beginning of a command that runs as root; None if none can."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "--non-interactive"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if shutil.which("sudo") and subprocess.run([*sudo, "true"], **silent).returncode == 0:
        return sudo
    return None


def is_there():
    """Whether there is a browser."""
    try:
        return bool(find_browser())
    except LookupError:
        return False


def install_package(end):
    """Install the system's package; what comes from the network has until a time for it."""
    root = as_root()
    if root is None or not shutil.which("apt-get"):
        print("browser: no package, which needs apt-get and root", flush=True)
        return
    apt = [*root, *ENVIRONMENT, *APT]
    # Without lists of packages, or with old ones, nothing can be downloaded.
    for before in ([], ["update"]):
        if before and (time.monotonic() > end or not run([*apt, *before], end - time.monotonic())):
            return
        if run([*apt, *INSTALL, "--download-only", "chromium"], end - time.monotonic()):
            # Nothing waits for a mirror now, and dpkg should not be killed.
            run([*apt, *INSTALL, "chromium"])
            return


def install_playwrights(end):
    """Let Playwright download its Chromium; as root with the libraries that it needs."""
    libraries = ["--with-deps"] if os.geteuid() == 0 and shutil.which("apt-get") else []
    command = [sys.executable, "-m", "playwright", "install", *libraries, "chromium"]
    run(command, end - time.monotonic())


def main(arguments=None):
    """Print where the browser is, after its installation if need be; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of the downloads")
    end = time.monotonic() + parser.parse_args(arguments).seconds
    for install in (install_package, install_playwrights):
        if not is_there() and time.monotonic() < end:
            install(end)
    try:
        path = find_browser()
    except LookupError as error:
        print(f"{error}. Tests in a browser will be skipped; with {REQUIRED}=1 they fail.")
    else:
        print(f"browser: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
