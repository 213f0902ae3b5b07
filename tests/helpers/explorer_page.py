"""The explorer as a user sees it: its controls, what it shows, and what that should be."""

import dataclasses
import io
import re
import time
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import torch
from PIL import Image

from setokim import build_encoder
from setokim.explorer.controls import FIELDS, Choice, Switch
from setokim.explorer.features import PANEL
from setokim.explorer.links import from_query
from setokim.visualization.cluster_maps import draw_map, fit
from setokim.visualization.functions import cluster
from setokim.visualization.image_clusters import ImageClusters, to_host

ENCODER = "patch-statistics"
VIEWS = {"mask": "One cluster", "scope": "Scope", "density": "Density", "delta": "Seed distance"}


def until(page, look, wanted, seconds=8.0):
    """Wait until a look at the page gives what is wanted; fail with the last that it gave."""
    end = time.monotonic() + seconds
    while (found := look()) != wanted:
        assert time.monotonic() < end, f"expected {wanted}, got {found}"
        page.wait_for_timeout(20)


def state(page):
    """State that the address of a page means; all of it must be understood."""
    found, messages = from_query(parse_qsl(urlsplit(page.url).query))
    assert not messages
    return found


def expect_state(page, **fields):
    """Wait until fields of the state in the address are as given."""
    until(page, lambda: {name: getattr(state(page), name) for name in fields}, fields)


def set_field(page, setting, function, field, value):
    """Set a control as a user does; a number in the box beside the slider."""
    kind = FIELDS[function][field][0]
    selector = f"#{setting}-{function}-{field}"
    control, text = page.locator(selector), "none" if value is None else str(value)
    if isinstance(kind, Switch):
        control.locator("input").set_checked(value)
    elif isinstance(kind, Choice) or (kind.instead and (value is None or isinstance(value, str))):
        control.get_by_label(text, exact=True).check()
    else:
        if kind.instead:
            control.get_by_label("a number", exact=True).check()
            control = page.locator(f"{selector}-number")
        control.locator("input[type=number]").fill(text)


def opened(visitor, url):
    """Open the explorer, and wait for the clusters that it begins with; return the page."""
    page = visitor.open(url)
    page.locator("#facts-A strong").wait_for()
    return page


def choose_image(page, key):
    """Choose an image at hand."""
    page.locator("#image input").click()
    page.get_by_role("option", name=key, exact=True).click()


def choices(page):
    """Names of the images at hand."""
    page.locator("#image input").click()
    page.get_by_role("option").first.wait_for()
    found = [
        text.strip().removeprefix("✓").strip()
        for text in page.get_by_role("option").all_inner_texts()
    ]
    page.keyboard.press("Escape")
    return found


def shown_image(page, selector):
    """Image of the server that an element shows, RGB; None without one."""
    found = page.locator(f"{selector} img")
    if not found.count():
        return None
    answer = page.context.request.get(found.get_attribute("src"))
    assert answer.ok, answer.status
    return Image.open(io.BytesIO(answer.body())).convert("RGB")


def toast(page):
    """Text of the message that an error shows, which is closed again."""
    found = page.get_by_test_id("toast-body")
    found.first.wait_for()
    text = found.first.inner_text()
    page.get_by_test_id("toast-close").first.click()
    found.first.wait_for(state="detached")
    return " ".join(text.split())


@dataclasses.dataclass
class Direct:
    """Clusterings by the public functions, without the explorer."""

    photo: Image.Image
    features: torch.Tensor = None

    def __post_init__(self):
        with torch.inference_mode():
            self.features = build_encoder(ENCODER)([self.photo])

    def clusters(self, config):
        """Clusters of the photograph, drawn at the size of the page."""
        with torch.inference_mode():
            [fields] = to_host(cluster(self.features, config))
        small = self.photo.resize(fit(self.photo.size, (PANEL, PANEL)), Image.Resampling.LANCZOS)
        return ImageClusters(source=None, name="", photo=small, **fields)

    def expect(self, page, setting, config):
        """Wait until a setting shows the clusters of a config: their number, map and sizes."""
        result = self.clusters(config)
        facts = page.locator(f"#facts-{setting}")
        count = "1 token" if result.tokens == 1 else f"{result.tokens} tokens"
        part = f"{setting}: {count} of {result.labels.size} "
        until(page, lambda: facts.inner_text().startswith(part) or facts.inner_text(), True)
        wanted = as_jpeg(draw_map(result, result.photo.size))
        until(page, lambda: likeness(shown_image(page, f"#map-{setting}"), wanted) < 0.5, True)


def as_jpeg(image):
    """Return an image as it is after JPEG, in which maps are sent."""
    content = io.BytesIO()
    image.save(content, "jpeg")
    return Image.open(content).convert("RGB")


def likeness(image, other):
    """Mean difference of two images in levels of 255."""
    if image is None or image.size != other.size:
        return 255.0
    return float(np.abs(np.asarray(image, float) - np.asarray(other.convert("RGB"), float)).mean())


def step_of(caption):
    """Step and mean scope in the caption of the scope."""
    found = re.match(r"Scope after step (\d+) of (\d+): ([\d.]+) of the image is left", caption)
    assert found, caption
    return int(found[1]), int(found[2]), float(found[3])
