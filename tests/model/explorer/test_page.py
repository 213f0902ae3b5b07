"""The explorer in a browser: images, every control, views, and links."""

import dataclasses

import pytest
from PIL import Image

pytest.importorskip("gradio")

from helpers.browser import visiting
from helpers.browser_page import click_pixel, screenshot
from helpers.explorer_page import (
    Direct,
    choices,
    choose_image,
    expect_state,
    likeness,
    opened,
    set_field,
    shown_image,
    state,
    step_of,
    until,
)
from setok_kernels import ClusterConfig
from setokim.data.photographs import photograph
from setokim.explorer.controls import FIELDS
from setokim.visualization.functions import CONFIGS, DPCConfig, GreedyConfig

# For each field a value that changes it.
CHANGES = {
    "cluster_tokens": {
        "k": 12,
        "max_clusters": 9,
        "kernel": "laplacian",
        "bandwidth": 0.4,
        "beta": 0.3,
        "temperature": 0.05,
        "offset": 0.4,
        "alpha": "kernel",
        "distance_scale": "dim",
        "score_norm": None,
        "distinct_seeds": False,
        "stop_residual": 0.1,
        "min_mass": 2.0,
        "include_self": True,
    },
    "dpc_knn": {
        "threshold": 0.05,
        # Refused without a threshold.
        "num_clusters": None,
        "k": 9,
        "min_clusters": 3,
        "order": "index",
        "cap": "eccentricity",
    },
    "threshold_greedy": {"threshold": 0.9},
}


@pytest.fixture(scope="module")
def astronaut():
    return Direct(photograph("astronaut").convert("RGB"))


@pytest.fixture
def page(visitor, served):
    page = opened(visitor, f"{served}?image=astronaut")
    expect_state(page, image="astronaut")
    return page


def caption(page, setting="A"):
    return page.locator(f"#caption-{setting}").inner_text()


def expect_caption(page, beginning, setting="A"):
    until(page, lambda: caption(page, setting)[: len(beginning)], beginning)


def test_the_first_image_is_shown_with_the_defaults(visitor, served, astronaut, own_file):
    page = opened(visitor, served)
    Direct(Image.open(own_file)).expect(page, "A", ClusterConfig())
    choose_image(page, "astronaut")
    astronaut.expect(page, "A", ClusterConfig())
    assert page.locator("#panel-B").is_hidden()
    expect_state(page, image="astronaut", first=ClusterConfig(), second=None)


def test_every_field_has_a_change_to_try():
    for function, kind in CONFIGS.items():
        names = [field.name for field in dataclasses.fields(kind)]
        assert sorted(names) == sorted(FIELDS[function]) == sorted(CHANGES[function])


@pytest.mark.parametrize("function", CHANGES)
def test_every_control_changes_the_clustering(page, astronaut, function):
    page.locator("#A-function").get_by_label(function).check()
    config = CONFIGS[function]()
    astronaut.expect(page, "A", config)
    for name in CHANGES:
        assert page.locator(f"#A-{name}").is_visible() == (name == function)
    for field, value in CHANGES[function].items():
        set_field(page, "A", function, field, value)
        config = dataclasses.replace(config, **{field: value})
        expect_state(page, first=config)
        astronaut.expect(page, "A", config)
    if function == "cluster_tokens":
        set_field(page, "A", function, "distance_scale", 0.25)
        expect_state(page, first=dataclasses.replace(config, distance_scale=0.25))


def test_presets_set_all_fields(page, astronaut):
    set_field(page, "A", "cluster_tokens", "k", 3)
    for name, config in (("paper", ClusterConfig.paper()), ("default", ClusterConfig())):
        page.locator(f"#A-preset-{name}").click()
        expect_state(page, first=config)
        astronaut.expect(page, "A", config)
        shown = page.locator("#A-cluster_tokens-bandwidth input[type=number]")
        until(page, lambda shown=shown: float(shown.input_value()), config.bandwidth)


def test_a_slider_moves_by_the_keyboard(page):
    page.locator("#A-cluster_tokens-k input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect_state(page, first=ClusterConfig(k=9))
    page.get_by_label("number input for bandwidth").first.fill("0.7")
    expect_state(page, first=ClusterConfig(k=9, bandwidth=0.7))


def test_two_settings_stand_side_by_side(page, astronaut, tmp_path):
    page.locator("#tab-B-button").click()
    page.locator("#B-function").get_by_label("dpc_knn").check()
    # Not shown yet, but kept.
    expect_state(page, second=None)
    page.locator("#compare input").check()
    astronaut.expect(page, "B", DPCConfig())
    set_field(page, "B", "dpc_knn", "num_clusters", 12)
    astronaut.expect(page, "B", DPCConfig(num_clusters=12))
    astronaut.expect(page, "A", ClusterConfig())
    expect_state(page, first=ClusterConfig(), second=DPCConfig(num_clusters=12))
    page.locator("#tab-A-button").click()
    set_field(page, "A", "cluster_tokens", "bandwidth", 0.45)
    astronaut.expect(page, "A", ClusterConfig(bandwidth=0.45))
    page.wait_for_timeout(300)
    screenshot(page, "compare", tmp_path)
    page.locator("#compare input").uncheck()
    page.locator("#panel-B").wait_for(state="hidden")
    expect_state(page, second=None)


def test_a_click_on_a_patch_shows_its_cluster_in_both_settings(page, astronaut):
    page.locator("#view").get_by_label("Score").check()
    page.locator("#compare input").check()
    page.locator("#tab-B-button").click()
    page.locator("#B-function").get_by_label("threshold_greedy").check()
    configs = {"A": ClusterConfig(), "B": GreedyConfig()}
    astronaut.expect(page, "B", configs["B"])
    for clicked, (row, column) in {"A": (20, 3), "B": (13, 13)}.items():
        image = page.locator(f"#map-{clicked} img")
        width, height = image.evaluate("e => [e.naturalWidth, e.naturalHeight]")
        x, y = int((column + 0.5) * width / 27), int((row + 0.5) * height / 27)
        click_pixel(page, f"#map-{clicked} img", x, y)
        labels = [int(astronaut.clusters(one).labels[row, column]) for one in configs.values()]
        expect_state(page, view="mask", label=labels[0], second_label=labels[1])
        for setting, label in zip(configs, labels, strict=True):
            tokens = astronaut.clusters(configs[setting]).tokens
            name = "Residual" if label == tokens else f"Cluster {label}"
            expect_caption(page, f"{name}: label of ", setting)
    until(page, lambda: page.locator("#view").get_by_label("One cluster").is_checked(), True)
    page.locator("#label-B input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect_state(page, second_label=labels[1] + 1, label=labels[0])
    page.locator("#label-A input[type=range]").focus()
    page.keyboard.press("End")
    expect_caption(page, "Residual: label of ")
    page.keyboard.press("Home")
    expect_caption(page, "Cluster 0: label of ")


def test_the_scope_is_stepped_through(page, astronaut, tmp_path):
    result = astronaut.clusters(ClusterConfig())
    page.locator("#view").get_by_label("Scope").check()
    expect_caption(page, f"Scope after step 0 of {result.tokens}: 1.000 of the image")
    slider = page.locator("#step input[type=range]")
    slider.focus()
    before, left = shown_image(page, "#detail-A"), 1.0
    for step in range(1, 6):
        page.keyboard.press("ArrowRight")
        expect_caption(page, f"Scope after step {step} of")
        number, steps, scope = step_of(caption(page))
        left -= float(result.masses[step - 1]) / result.labels.size
        assert (number, steps) == (step, result.tokens) and abs(scope - left) < 1e-3
        until(page, lambda old=before: likeness(shown_image(page, "#detail-A"), old) > 0.5, True)
        before = shown_image(page, "#detail-A")
    page.wait_for_timeout(300)
    screenshot(page, "scope", tmp_path)
    page.keyboard.press("End")
    expect_state(page, view="scope", step=result.tokens)


def test_views_of_values_and_of_none(page, astronaut):
    result, view = astronaut.clusters(ClusterConfig()), page.locator("#view")
    for name, title in {"density": "Density", "delta": "Seed distance", "score": "Score"}.items():
        view.get_by_label(title).check()
        expect_caption(page, f"{title}: {result.values[name].min():.4g} (dark)")
        assert f"mean {result.values[name].mean():.4g}" in caption(page)
        assert shown_image(page, "#detail-A") is not None
    page.locator("#A-function").get_by_label("threshold_greedy").check()
    expect_caption(page, "Score: this function computes none.")
    page.locator("#detail-A img").wait_for(state="detached")


def expect_uploaded(page, name, photo):
    Direct(photo).expect(page, "A", ClusterConfig())
    assert "of 729" in page.locator("#facts-A").inner_text()
    assert page.locator("#image input").input_value() == name
    assert name in choices(page)


def test_an_upload_is_clustered_and_belongs_to_its_user(browser, visitor, served, tmp_path):
    photo = photograph("coffee").convert("RGB").resize((300, 200))
    photo.save(tmp_path / "my cup.png")
    page = opened(visitor, served)
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "my cup.png")
    expect_uploaded(page, "my cup.png", photo)
    with visiting(browser) as other:
        assert "my cup.png" not in choices(opened(other, served))
    with visiting(browser) as friend:
        # Only who has the link sees it.
        shared = opened(friend, page.url)
        expect_uploaded(shared, "my cup.png", photo)
        assert state(shared) == state(page)


PASTE = """async () => {
    const canvas = new OffscreenCanvas(64, 48);
    const context = canvas.getContext("2d");
    context.fillStyle = "red";
    context.fillRect(0, 0, 64, 48);
    context.fillStyle = "blue";
    context.fillRect(32, 0, 32, 48);
    const blob = await canvas.convertToBlob({type: "image/png"});
    await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
}"""


def test_an_image_is_pasted_from_the_clipboard(visitor, served):
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = opened(visitor, served)
    page.evaluate(PASTE)
    page.get_by_label("Paste from clipboard").click()
    until(page, lambda: state(page).image.startswith("upload-"), True)
    until(page, lambda: shown_image(page, "#upload").size, (64, 48))
    shown = shown_image(page, "#upload")
    for x, wanted in ((10, (255, 0, 0)), (50, (0, 0, 255))):
        assert all(abs(a - b) < 8 for a, b in zip(shown.getpixel((x, 20)), wanted, strict=True))


LINKS = {
    "photograph": "image=coffee&k=9&kernel=laplacian&view=scope&step=2",
    "own": "image=own%20image.png&function=dpc_knn&num_clusters=9&threshold=none&view=score",
    "both": "image=astronaut&bandwidth=0.4&label=2&b.function=threshold_greedy&b.label=3",
}


@pytest.mark.parametrize("query", LINKS.values(), ids=LINKS)
def test_a_link_reproduces_the_state(browser, visitor, served, query):
    page = opened(visitor, f"{served}?{query}")
    copied = page.locator("#link textarea")
    until(page, lambda: copied.input_value() == page.url, True)
    first = state(page)
    assert not page.locator("#notice").count() or page.locator("#notice").is_hidden()
    texts = [
        page.locator(f"#facts-{one}").inner_text().partition(" · clustering")[0]
        for one in "AB"[: len(first.configs)]
    ]
    with visiting(browser) as other:
        again = opened(other, copied.input_value())
        expect_state(
            again, **{one.name: getattr(first, one.name) for one in dataclasses.fields(first)}
        )
        for setting, text in zip("AB", texts, strict=False):
            facts = again.locator(f"#facts-{setting}")
            until(again, lambda facts=facts: facts.inner_text().partition(" · clustering")[0], text)
            assert (
                likeness(
                    shown_image(page, f"#map-{setting}"), shown_image(again, f"#map-{setting}")
                )
                == 0
            )
        expect_caption(again, caption(page))
    assert state(page) == first


def test_a_damaged_link_names_each_fault_and_keeps_the_rest(visitor, served):
    query = "image=nowhere&k=9&kernel=square&bandwidth=70&view=all&what=1&b.k=x&b.max_clusters=7"
    page = opened(visitor, f"{served}?{query}")
    items = page.locator("#notice li")
    items.first.wait_for()
    names = [text.partition(":")[0] for text in items.all_inner_texts()]
    assert names == ["kernel", "view", "what", "b.k", "bandwidth", "image"]
    assert "bandwidth: expected 0.005 to 3 here, got 70" in items.nth(4).inner_text()
    assert items.nth(5).inner_text().endswith("got 'nowhere'")
    expect_state(
        page,
        image="own image.png",
        first=ClusterConfig(k=9),
        second=ClusterConfig(max_clusters=7),
        view="mask",
    )
