"""What tests do on a page in the browser: axe, the keyboard, response times, screenshots."""

import dataclasses
import os
from pathlib import Path

from PIL import Image

from setok_bench.explorer_response import RESPONSE

SCREENSHOTS = Path(__file__).parents[2] / "docs" / "explore"


@dataclasses.dataclass(frozen=True)
class Violation:
    """A rule of axe that elements of a page break.

    Attributes:
        id: name of the rule, such as "image-alt".
        impact: "minor", "moderate", "serious" or "critical".
        targets: CSS selectors of the elements.
        help: what the rule asks for.
    """

    id: str
    impact: str
    targets: tuple
    help: str


def violations(page, rules=None, within=None):
    """Run axe in a page; its script comes with the package, and asks the network for nothing.

    Args:
        page: Playwright's page.
        rules: names of the rules to check; all without it.
        within: CSS selector of the part to check; the whole page without it.
    """
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"]}
    if rules is not None:
        options["runOnly"] = {"type": "rule", "values": list(rules)}
    found = Axe().run(page, context=within, options=options).response["violations"]
    return [
        Violation(
            one["id"],
            one["impact"],
            tuple(" ".join(map(str, node["target"])) for node in one["nodes"]),
            one["help"],
        )
        for one in found
    ]


@dataclasses.dataclass(frozen=True)
class Stop:
    """An element that the tab key reaches, as a screen reader announces it.

    Attributes:
        role: its role, such as "slider".
        name: its accessible name; empty if it has none.
        inside: `id` of the closest element that has one, itself included.
    """

    role: str
    name: str
    inside: str


FROM_THE_START = """() => {
    const body = document.body;
    body.tabIndex = -1;
    body.focus();
    body.removeAttribute("tabindex");
}"""


def tab_stops(page, limit=200):
    """Press the tab key from the start of a page to its end; return all stops in order."""
    session = page.context.new_cdp_session(page)
    page.evaluate(FROM_THE_START)
    stops = []
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement === document.body"):
        assert len(stops) < limit, f"the focus never leaves the page: {stops[-5:]}"
        stops.append(_focused(page, session))
        page.keyboard.press("Tab")
    session.detach()
    return stops


def _focused(page, session):
    focused = session.send("Runtime.evaluate", {"expression": "document.activeElement"})
    argument = {"objectId": focused["result"]["objectId"], "fetchRelatives": False}
    node = session.send("Accessibility.getPartialAXTree", argument)["nodes"][0]
    said = [node.get(part, {}).get("value", "") for part in ("role", "name")]
    inside = page.evaluate("document.activeElement.closest('[id]')?.id ?? ''")
    return Stop(*said, inside)


def response_ms(page, slider, value, image, events=("input",), seconds=20.0):
    """Move a slider, and return the milliseconds until an image shows something new.

    It ends in a frame of the screen, of which there are 60 a second.

    Args:
        page: Playwright's page.
        slider: CSS selector of an `<input type=range>`.
        value: its new value, another than before.
        image: CSS selector of an `<img>`, which may be replaced by another element.
        events: names of the events sent to the slider, in order.
        seconds: time after which it fails.
    """
    return page.evaluate(RESPONSE, [slider, str(value), image, list(events), seconds])


# Of an image: sides of its element and of its file, and the scale that the style allows.
FITTED = """image => {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const fit = getComputedStyle(image).objectFit;
    if (!["contain", "scale-down"].includes(fit)) throw new Error(`object-fit is ${fit}`);
    return [
        box.width, box.height, image.naturalWidth, image.naturalHeight,
        fit === "scale-down" ? Math.min(scale, 1) : scale,
    ];
}"""


def click_pixel(page, image, x, y):
    """Click into a pixel of an image of Gradio, at whatever size it is displayed.

    Browsers floor positions of clicks, and Gradio rounds: where the image is displayed smaller than
    it is, a pixel nearby may be hit, and one at the boundary may be missed.

    Args:
        page: Playwright's page.
        image: CSS selector of an `<img>`, which is displayed in the middle of its element.
        x: column of the pixel in the image's file.
        y: its row.
    """
    found = page.locator(image)
    found.scroll_into_view_if_needed()
    width, height, columns, rows, scale = found.evaluate(FITTED)
    left, top = (width - scale * columns) / 2, (height - scale * rows) / 2
    # A label or a button above the pixel takes the click, and Playwright says so.
    position = {"x": left + (x + 0.5) * scale, "y": top + (y + 0.5) * scale}
    found.click(position=position, timeout=5000)


def screenshot(page, name, tmp_path, full_page=False):
    """Save a screenshot; return its path.

    Args:
        page: Playwright's page.
        name: name of the file, without its suffix.
        tmp_path: folder of it; with SETOK_SCREENSHOTS=1 the documentation gets it too, as WebP.
        full_page: also what is below the window.
    """
    path = tmp_path / f"{name}.png"
    page.screenshot(path=path, full_page=full_page, animations="disabled")
    if os.environ.get("SETOK_SCREENSHOTS") == "1":
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as taken:
            # A fifth of the PNG, in the same colours.
            taken.convert("RGB").save(SCREENSHOTS / f"{name}.webp", quality=90, method=6)
    return path
