"""The explorer with a model in a browser: reconstructions."""

import pytest

pytest.importorskip("gradio")

import numpy as np

from helpers.browser_page import screenshot, violations
from helpers.explorer_page import expect_state, opened, shown_image, state, until
from setokim import SetokModel
from setokim.explorer.features import Features
from setokim.explorer.images import Images
from setokim.explorer.reconstruction import Reconstruction
from setokim.explorer.server import serve
from setokim.shapes_world.render import render
from setokim.shapes_world.scene import Object, Scene

RED = Object("circle", "large", "red", "plain", 0.3, 0.3)
BLUE = Object("square", "medium", "blue", "plain", 0.7, 0.7, depth=1)


@pytest.fixture(scope="module")
def served(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scene.png"
    render(Scene((RED, BLUE), "grey"), 256)[0].save(path)
    reconstruction = Reconstruction(SetokModel.from_pretrained())
    encoder = reconstruction.model.encoder
    features = Features(Images([path]), encoder, "small-world", reconstruction=reconstruction)
    with serve(features) as address:
        yield address


def test_a_token_is_removed_from_the_reconstruction(visitor, served, tmp_path):
    page = opened(visitor, served)
    page.locator("#rebuilt img").wait_for()
    image = page.locator("#map-A img")
    width, height = image.evaluate("e => [e.clientWidth, e.clientHeight]")
    image.click(position={"x": 0.3 * width, "y": 0.3 * height})
    page.locator("#edit").get_by_label("without the cluster in view").check()
    expect_state(page, edit="without")
    edited = page.locator("#edited img")
    edited.wait_for()

    def redness(selector):
        shown = shown_image(page, selector)
        red, _, blue = shown.getpixel((int(0.3 * shown.width), int(0.3 * shown.height)))
        return red - blue

    until(page, lambda: redness("#edited") < redness("#rebuilt") - 50, True)
    assert state(page).label == int(page.locator("#label-A input").first.input_value())
    assert not violations(page)
    page.locator("#edited").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    screenshot(page, "reconstruction", tmp_path)


def test_a_token_is_moved_in_the_reconstruction(visitor, served):
    page = opened(visitor, served)
    page.locator("#rebuilt img").wait_for()
    page.locator("#edit").get_by_label("with the cluster in view moved").check()
    slider = page.locator("#move-down input[type=range]")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect_state(page, edit="moved", down=0.2)

    def height_of_red(selector):
        pixels = np.asarray(shown_image(page, selector)).astype(int)
        weight = (pixels[..., 0] - pixels[..., 2]).clip(60) - 60
        return float((weight.sum(1) * np.arange(len(pixels))).sum() / weight.sum()) / len(pixels)

    page.locator("#edited img").wait_for()
    until(page, lambda: height_of_red("#edited") > height_of_red("#rebuilt") + 0.1, True)
