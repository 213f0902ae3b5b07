"""The browser that drives explorers in tests, on a page of Gradio with something of everything."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from helpers import browser as harness
from helpers import browser_page, install_browser, processes
from helpers.browser import visiting
from helpers.browser_page import Stop, click_pixel, response_ms, screenshot, tab_stops, violations
from helpers.served_app import served_blocks, served_command

# What the planted faults do in the page.
FAULTS = {
    "error": "() => console.error('planted error')",
    "warning": "() => console.warn('planted warning')",
    "exception": "() => { setTimeout(() => { throw new Error('planted exception') }) }",
    "missing": "() => { fetch('/gradio_api/nowhere') }",
    "other-host": "() => { fetch('http://tell.example/me').catch(() => 0) }",
}
WAIT = 0.2


def drawn(value):
    """An image that depends on a number: 600 by 400 pixels for one below 5, and a tenth from it."""
    time.sleep(WAIT)
    return Image.new("RGB", (600, 400) if value < 5 else (60, 40), (20 * value, 90, 30))


def page_of_everything(gr):
    with gr.Blocks(title="Everything", analytics_enabled=False) as blocks:
        given = gr.Image(label="Given", type="pil", elem_id="given", sources=["upload"])
        slider = gr.Slider(0, 10, value=1, step=1, label="Number", elem_id="number")
        # Its label would lie over the pixels of a corner, and its buttons over those of another.
        shown = gr.Image(
            drawn(1),
            label="Shown",
            show_label=False,
            buttons=[],
            elem_id="shown",
            height=200,
            interactive=False,
        )
        said = gr.Textbox(label="Said", elem_id="said")
        for name, code in FAULTS.items():
            gr.Button(name, elem_id=name).click(None, js=code)
        calls = gr.State(0)
        gr.Button("Count", elem_id="count").click(
            lambda count: (count + 1, str(count + 1)), calls, [calls, said]
        )

        # Gradio finds this argument by its annotation.
        def select(event: gr.SelectData):
            return str(event.index)

        shown.select(select, None, said)
        slider.input(drawn, slider, shown, show_progress="hidden")
        given.upload(lambda image: str(image.size), given, said)
    return blocks


@pytest.fixture(scope="module")
def gr():
    return pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def url(gr):
    with served_blocks(page_of_everything(gr)) as address:
        yield address


def said(visitor, before=""):
    """What the page says once it says something else than before."""
    box = visitor.page.locator("#said textarea")
    processes.wait_until(lambda: box.input_value() != before)
    visitor.wait_until_idle()
    return box.input_value()


def test_uploads_and_the_time_of_a_slider(url, visitor, tmp_path):
    page = visitor.open(url)
    Image.new("RGB", (31, 17)).save(tmp_path / "given.png")
    page.locator("#given input[type=file]").set_input_files(tmp_path / "given.png")
    assert said(visitor) == "(31, 17)"

    slider, image = "#number input[type=range]", "#shown img"
    for value in (2, 3):
        assert WAIT * 1000 <= response_ms(page, slider, value, image) < WAIT * 1000 + 2000
    with pytest.raises(Exception, match=r"no new image in #shown img after 0\.5 s"):
        response_ms(page, slider, 3, image, events=["other"], seconds=0.5)


@pytest.mark.parametrize(("size", "off"), [((600, 400), 2), ((60, 40), 0)])
def test_clicks_into_pixels(url, visitor, size, off):
    """The first image is displayed at half its size, the other at its own."""
    page = visitor.open(url)
    if off == 0:
        response_ms(page, "#number input[type=range]", 5, "#shown img")
    right, bottom = size[0] - 1 - off, size[1] - 1 - off
    text = ""
    for x, y in [(off, off), (right, off), (off, bottom), (right // 3, bottom // 2)]:
        click_pixel(page, "#shown img", x, y)
        text = said(visitor, text)
        hit = json.loads(text)
        assert abs(hit[0] - x) <= off and abs(hit[1] - y) <= off, (hit, x, y)


def test_keyboard(url, visitor):
    page = visitor.open(url)
    stops = tab_stops(page)
    assert Stop("slider", "range slider for Number", "range_id_0") in stops
    assert Stop("button", "Count", "count") in stops
    assert [stop.inside for stop in stops if stop.inside in FAULTS] == list(FAULTS)
    assert tab_stops(page) == stops, "it does not begin at the start of the page"
    with pytest.raises(AssertionError, match="the focus never leaves the page"):
        tab_stops(page, limit=3)


def test_axe(url, visitor):
    page = visitor.open(url)
    assert not violations(page, rules=["image-alt"])
    page.evaluate("""() => {
        const image = document.createElement("img");
        image.id = "planted";
        image.src = document.querySelector("#shown img").src;
        document.querySelector("#number").append(image);
    }""")
    (found,) = violations(page, rules=["image-alt"])
    assert (found.id, found.impact, found.targets) == ("image-alt", "critical", ("#planted",))
    assert found.help == "Images must have alternative text"
    assert found in violations(page)
    assert violations(page, within="#number") and not violations(page, within="#count")


def test_faults_of_the_page_fail_the_test(browser, url):
    with pytest.raises(AssertionError, match="the page had problems") as raised:  # noqa: SIM117
        with visiting(browser) as one:
            page = one.open(url)
            for name in FAULTS:
                page.locator(f"#{name}").click()
            one.wait_until_idle()
            with pytest.raises(AssertionError, match="expected a problem with 'absent'"):
                one.expect("absent")
            one.expect("planted warning")
    _, *problems = str(raised.value).splitlines()
    expected = {
        "console error: planted error",
        "error in the page: planted exception",
        "console error: Failed to load resource: the server responded with a status of 404",
        "request to another host: http://tell.example/me",
        "request failed: http://tell.example/me: net::ERR_NAME_NOT_RESOLVED",
        "console error: Failed to load resource: net::ERR_NAME_NOT_RESOLVED",
    }
    for text in expected:
        assert [problem for problem in problems if problem.startswith(text)], (text, problems)
    assert len(problems) == len(expected), problems


def test_two_users_share_nothing(browser, url):
    with visiting(browser) as first, visiting(browser) as second:
        first.open(url)
        second.open(url)
        for one in (first, second, first):
            one.page.locator("#count").click()
            one.wait_until_idle()
        assert (said(first), said(second)) == ("2", "1")


def test_screenshots(url, visitor, tmp_path, monkeypatch):
    page = visitor.open(url)
    docs = tmp_path / "docs"
    monkeypatch.setattr(browser_page, "SCREENSHOTS", docs)
    for wanted in ("0", "1"):
        monkeypatch.setenv("SETOK_SCREENSHOTS", wanted)
        assert screenshot(page, "everything", tmp_path) == tmp_path / "everything.png"
        assert docs.exists() == (wanted == "1")
    for path in (tmp_path / "everything.png", docs / "everything.webp"):
        with Image.open(path) as image:
            assert image.size == (1280, 900)
            assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_the_browser_leaves_no_event_loop_and_no_thread(browser):
    # In a process of its own: a thread can have one browser.
    code = """if True:
        import asyncio, threading
        from helpers.browser import launched, visiting
        with launched() as browser, visiting(browser):
            pass
        asyncio.run(asyncio.sleep(0))
        # One has waited for Playwright's driver to end, and now ends itself.
        for thread in set(threading.enumerate()) - {threading.main_thread()}:
            thread.join(20)
        assert threading.enumerate() == [threading.main_thread()]
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parent)


SERVER = """if True:
    import http.server, sys
    print("starts")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    print(f"Open http://127.0.0.1:{server.server_port}/ in a browser.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
"""


def test_commands_that_serve(tmp_path):
    with served_command([sys.executable, "-c", SERVER], cwd=tmp_path) as served:
        assert served.url.startswith("http://127.0.0.1:") and served.url.endswith("/")
        assert processes.alive(served.process.pid)
    assert served.process.returncode == 0
    assert served.lines[0] == "starts\n" and served.lines[-1] == "stopped\n"


def test_commands_that_end_or_do_not_stop():
    code = "import sys; print('no port left'); sys.exit(3)"
    with pytest.raises(AssertionError, match=r"ended without a URL, code 3: no port left"):  # noqa: SIM117
        with served_command([sys.executable, "-c", code]):
            pass
    code = (
        "import signal, time; signal.signal(2, signal.SIG_IGN); print('http://a:1/'); time.sleep(9)"
    )
    with pytest.raises(subprocess.TimeoutExpired):  # noqa: SIM117
        with served_command([sys.executable, "-c", code], seconds=1) as served:
            pass
    assert not processes.alive(served.process.pid)


@pytest.fixture
def no_browser(monkeypatch, tmp_path):
    monkeypatch.delenv(harness.PATH, raising=False)
    monkeypatch.delenv(harness.REQUIRED, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(harness, "playwrights_own", lambda: "/nowhere/chrome")


def test_without_a_browser_tests_are_skipped(no_browser, tmp_path):
    stub = tmp_path / "chromium-browser"
    stub.write_text("#!/bin/sh\necho requires the snap; exit 1\n")
    stub.chmod(0o755)
    with pytest.raises(pytest.skip.Exception) as raised, harness.launched():
        pass
    assert str(raised.value) == (
        "no browser: SETOK_BROWSER is not set; no chromium on PATH; "
        f"{stub} --version: exit code 1: requires the snap; no google-chrome on PATH; "
        "Playwright has installed none at /nowhere/chrome. `make browser` installs one."
    )


def test_without_a_browser_tests_fail_where_one_is_required(no_browser, monkeypatch):
    monkeypatch.setenv(harness.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="no chromium on") as raised, harness.launched():
        pass
    assert str(raised.value).endswith("SETOK_BROWSER_REQUIRED=1 asks for it.")


def test_without_playwright(no_browser, monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(LookupError, match="no browser: Playwright cannot be imported"):
        harness.find_browser()


def test_a_named_browser_must_be_one(no_browser, monkeypatch):
    pytest.importorskip("playwright")
    for path in ("/nowhere/chromium", sys.executable):
        monkeypatch.setenv(harness.PATH, path)
        with pytest.raises(ValueError, match=f"SETOK_BROWSER: expected the path .* got '{path}'"):
            harness.find_browser()


def test_a_mirror_that_hangs_ends_no_installation_with_an_error(no_browser, monkeypatch, capfd):
    monkeypatch.setattr(
        install_browser, "APT", [sys.executable, "-c", "import time; time.sleep(9)"]
    )
    monkeypatch.setattr(install_browser, "as_root", lambda: [])
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "apt-get" else None)
    monkeypatch.setattr(install_browser, "ENVIRONMENT", [])
    begin = time.monotonic()
    assert install_browser.main(["--seconds", "0.5"]) == 0
    assert time.monotonic() - begin < 5
    out = capfd.readouterr().out
    assert "browser: stopped after 0 s" in out
    assert "no google-chrome on PATH" in out and "Tests in a browser will be skipped" in out


def test_no_root_and_a_failed_download_end_no_installation_with_an_error(
    no_browser, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(install_browser, "as_root", lambda: None)
    monkeypatch.setattr(install_browser, "run", lambda command, seconds: asked.append(command))
    assert install_browser.main([]) == 0
    assert [command[1:4] for command in asked] == [["-m", "playwright", "install"]]
    assert "Tests in a browser will be skipped" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_last_lines_count_what_was_skipped(no_browser, tmp_path, workers):
    tests = Path(__file__).parent
    (tmp_path / "conftest.py").write_text(
        "from helpers import browser as harness\n"
        "from helpers.browser import browser, pytest_terminal_summary, visitor\n"
        "harness.playwrights_own = lambda: '/nowhere/chrome'\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_one(browser): pass\ndef test_two(visitor): pass\ndef test_three(): pass\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tests)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no browser: 2 tests did not run (`make browser` installs one)\n" in done.stdout
    assert "1 passed, 2 skipped" in done.stdout
