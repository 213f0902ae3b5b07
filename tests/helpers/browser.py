"""A headless browser for tests, found on the machine, and its fixtures.

A test asks for the fixture `visitor`: a user with a page of their own, or for `browser`, of which
`visiting` makes several such users. Without a browser these tests are skipped, or fail with
SETOK_BROWSER_REQUIRED=1.

Playwright's event loop counts as the running one of the thread from its start to its end, and
`asyncio.run` is then refused in every other test. So a browser lives for a module of tests: half a
second for each.
"""

import contextlib
import dataclasses
import importlib
import os
import shutil
import subprocess
import time
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATH, REQUIRED = "SETOK_BROWSER", "SETOK_BROWSER_REQUIRED"
# How a reason to skip begins; the summary at the end counts them.
NONE_FOUND = "no browser: "

# Whatever a page asks for, names of other hosts have no address: nothing leaves the machine.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
# Ends once the page has drawn its next frame.
NEXT_FRAME = "new Promise(drawn => requestAnimationFrame(() => setTimeout(drawn)))"
CONTEXT = {
    "viewport": {"width": 1280, "height": 900},
    "device_scale_factor": 1,
    "reduced_motion": "reduce",
    "color_scheme": "light",
    "locale": "en-US",
    "timezone_id": "UTC",
}
# Gradio says this of its own client whenever an upload has ended.
HARMLESS = {"Method not implemented."}


def why_not(path):
    """Why a file is no browser that starts; None if it is one.

    The command `chromium-browser` of Ubuntu only asks to install another package.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        return f"{path} --version: exit code {done.returncode}: {said[-300:]}"
    return None if "Chrom" in done.stdout else f"{path} --version: {said[-300:]}"


def playwrights_own():
    """Where Playwright keeps the Chromium that it has installed, or would install."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def find_browser():
    """Return the path of a browser.

    Raises:
        ValueError: SETOK_BROWSER is set, but not to a browser.
        LookupError: there is none, or no Playwright; the text says where it was looked for.
    """
    try:
        importlib.import_module("playwright.sync_api")
    except ImportError as error:
        raise LookupError(f"{NONE_FOUND}Playwright cannot be imported: {error}") from None
    if path := os.environ.get(PATH):
        if reason := why_not(path):
            raise ValueError(f"{PATH}: expected the path of a Chromium, got {path!r}: {reason}")
        return path
    looked = [f"{PATH} is not set"]
    for name in NAMES:
        found = shutil.which(name)
        reason = why_not(found) if found else f"no {name} on PATH"
        if reason is None:
            return found
        looked.append(reason)
    own = playwrights_own()
    reason = why_not(own) if os.path.exists(own) else f"Playwright has installed none at {own}"
    if reason is None:
        return own
    raise LookupError(NONE_FOUND + "; ".join([*looked, reason]))


def refuse(reason):
    """Skip the test that needs a browser, or fail it where one is required."""
    text = f"{reason}. `make browser` installs one."
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{text} {REQUIRED}=1 asks for it.", pytrace=False)
    pytest.skip(text)


def pytest_terminal_summary(terminalreporter):
    """Say that tests were skipped for want of a browser, which `-q` hides."""
    reports = terminalreporter.stats.get("skipped", [])
    count = sum(NONE_FOUND in str(report.longrepr) for report in reports)
    if count:
        tests = "1 test" if count == 1 else f"{count} tests"
        line = f"{NONE_FOUND}{tests} did not run (`make browser` installs one)"
        terminalreporter.write_line(line, yellow=True)


@contextlib.contextmanager
def launched():
    """Yield a browser of Playwright; skip the test if there is none."""
    try:
        path = find_browser()
    except LookupError as error:
        refuse(str(error))
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox refuses to work for root.
    arguments = [OFFLINE, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield started
        finally:
            started.close()


@pytest.fixture(scope="module")
def browser():
    with launched() as started:
        yield started


@dataclasses.dataclass
class Visitor:
    """A user: a page in a browser context of its own, which shares nothing with others.

    Attributes:
        context: Playwright's browser context.
        page: its first page.
        problems: texts of what went wrong so far, as the end of the test will say.
        pending: URLs of requests without an answer yet.
        hosts: hosts and ports that may be asked, those of the URLs that were opened.
    """

    context: object
    page: object
    problems: list
    pending: list
    hosts: set

    def open(self, url):
        """Go to an application of Gradio, and wait until it has loaded; return the page."""
        self.hosts.add(urlsplit(url).netloc)
        self.page.goto(url)
        self.page.locator(".gradio-container").first.wait_for()
        self.wait_until_idle()
        return self.page

    def wait_until_idle(self, seconds=20.0, quiet=5):
        """Wait until all events have been answered: for some frames the page has asked for nothing.

        Frames and not seconds alone, as a page on a busy machine begins late with what a click asks
        for, and then draws late too.
        """
        end = time.monotonic() + seconds
        still = 0
        while still < quiet:
            # Events of the browser arrive only while Playwright waits.
            self.page.wait_for_timeout(20)
            self.page.evaluate(NEXT_FRAME)
            still = 0 if self.pending else still + 1
            assert time.monotonic() < end, f"not idle after {seconds} s, waits for {self.pending}"

    def expect(self, *texts):
        """Take each text's problem from the list: it must be there, and is what the test wants."""
        for text in texts:
            found = [problem for problem in self.problems if text in problem]
            assert found, f"expected a problem with {text!r}, got {self.problems}"
            for problem in found:
                self.problems.remove(problem)

    def check(self):
        """Fail with the text of all problems."""
        assert not self.problems, "the page had problems:\n" + "\n".join(self.problems)


def _watch(visitor):
    """Collect what goes wrong in all pages of a context."""
    context, say = visitor.context, visitor.problems.append

    def on_console(message):
        if message.type in ("error", "warning") and message.text not in HARMLESS:
            place = message.location
            say(f"console {message.type}: {message.text} ({place['url']}:{place['lineNumber']})")

    def on_request(request):
        address = urlsplit(request.url)
        if address.scheme in ("data", "blob"):
            return
        if address.netloc not in visitor.hosts:
            say(f"request to another host: {request.url}")
        # A stream that is open as long as the page is.
        if "/gradio_api/heartbeat/" not in address.path:
            visitor.pending.append(request)

    def on_end(request):
        if request in visitor.pending:
            visitor.pending.remove(request)

    def on_failure(request):
        on_end(request)
        # The page closes its stream of events itself, and drops images that newer ones replace.
        stopped = request.failure == "net::ERR_ABORTED" and (
            urlsplit(request.url).path.endswith("/gradio_api/queue/data")
            or request.resource_type == "image"
        )
        if not stopped:
            say(f"request failed: {request.url}: {request.failure}")

    context.on("console", on_console)
    context.on("weberror", lambda event: say(f"error in the page: {event.error}"))
    context.on("request", on_request)
    context.on("requestfinished", on_end)
    context.on("requestfailed", on_failure)


@contextlib.contextmanager
def visiting(browser, **options):
    """Yield a user; at the end anything that went wrong in their pages fails the test.

    Args:
        browser: Playwright's browser.
        options: options of its context that differ from `CONTEXT`.
    """
    context = browser.new_context(**CONTEXT | options)
    try:
        visitor = Visitor(context, context.new_page(), problems=[], pending=[], hosts=set())
        _watch(visitor)
        yield visitor
        # What the last event has set off counts too.
        visitor.wait_until_idle()
        visitor.check()
    finally:
        context.close()


@pytest.fixture
def visitor(browser):
    with visiting(browser) as one:
        yield one
