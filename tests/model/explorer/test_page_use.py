"""The explorer in a browser: bad input, several users, accessibility, response time, files."""

import contextlib
import io
import json
import shlex
import subprocess
import sys
import time

import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("gradio")

from helpers.browser import visiting
from helpers.browser_page import response_ms, screenshot, tab_stops, violations
from helpers.explorer_page import (
    ENCODER,
    Direct,
    choices,
    choose_image,
    expect_state,
    opened,
    set_field,
    state,
    toast,
    until,
)
from helpers.served_app import served_command
from setok_cli.main import main
from setok_kernels import ClusterConfig
from setokim import build_encoder
from setokim.cli.cluster_results import process_files
from setokim.data.photographs import photograph
from setokim.explorer import images
from setokim.visualization.functions import DPCConfig, GreedyConfig
from setokim.visualization.image_clusters import Method


def upload(page, path):
    page.locator("#upload input[type=file]").set_input_files(path)


def still_works(page, bandwidth):
    set_field(page, "A", "cluster_tokens", "bandwidth", bandwidth)
    expect_state(page, first=ClusterConfig(bandwidth=bandwidth))


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    content = io.BytesIO()
    photograph("coffee").save(content, "png")
    (folder / "text.jpg").write_text("no image at all")
    (folder / "half.png").write_bytes(content.getvalue()[:20000])
    (folder / "drawn.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    Image.new("1", (10000, 10000)).save(folder / "huge.png")
    return folder


BAD = {
    "text.jpg": "text.jpg",
    "half.png": "half.png",
    "drawn.svg": "drawn.svg",
    "huge.png": "huge.png: expected at most 64 megapixels, got 100 (10000 x 10000)",
}


def test_files_that_are_no_images_are_refused_and_the_page_goes_on(visitor, served, bad_files):
    page = opened(visitor, served)
    for i, (name, text) in enumerate(BAD.items()):
        upload(page, bad_files / name)
        said = toast(page)
        assert text in said, said
        assert "Traceback" not in said and "/tmp" not in said
        still_works(page, 0.4 + i / 10)
    assert not set(BAD) & set(choices(page))


def test_a_file_over_the_limit_is_refused(visitor, served, bad_files, monkeypatch):
    monkeypatch.setattr(images, "MAX_UPLOAD", 2**20)
    (bad_files / "large.png").write_bytes(bytes(3 * 2**20))
    page = opened(visitor, served)
    upload(page, bad_files / "large.png")
    assert "expected a file of at most 1 MB, got large.png of 3 MB" in toast(page)
    still_works(page, 0.6)


def test_a_removed_image_is_replaced_by_the_next(visitor, served, tmp_path):
    page = opened(visitor, served)
    page.get_by_label("Remove Image").click()
    visitor.wait_until_idle()
    photo = photograph("coffee").convert("RGB").resize((300, 200))
    photo.save(tmp_path / "next.png")
    upload(page, tmp_path / "next.png")
    Direct(photo).expect(page, "A", ClusterConfig())
    page.get_by_label("Remove Image").click()
    still_works(page, 0.6)


def test_two_users_do_not_mix(browser, served):
    with visiting(browser) as one, visiting(browser) as two:
        first, second = opened(one, served), opened(two, served)
        choose_image(first, "astronaut")
        # The second user works while the server answers the first.
        choose_image(second, "coffee")
        set_field(first, "A", "cluster_tokens", "bandwidth", 0.35)
        second.locator("#A-function").get_by_label("dpc_knn").check()
        set_field(first, "A", "cluster_tokens", "k", 6)
        set_field(second, "A", "dpc_knn", "num_clusters", 20)
        Direct(photograph("astronaut").convert("RGB")).expect(
            first, "A", ClusterConfig(bandwidth=0.35, k=6)
        )
        Direct(photograph("coffee").convert("RGB")).expect(second, "A", DPCConfig(num_clusters=20))
        expect_state(first, image="astronaut", first=ClusterConfig(bandwidth=0.35, k=6))
        expect_state(second, image="coffee", first=DPCConfig(num_clusters=20))


def test_answers_come_in_the_order_of_the_changes(visitor, served, features, monkeypatch):
    page = opened(visitor, f"{served}?image=astronaut")
    clusters, pauses = features.clusters, iter([1.5])

    def slow_once(*arguments):
        time.sleep(next(pauses, 0))
        return clusters(*arguments)

    monkeypatch.setattr(features, "clusters", slow_once)
    page.locator("#compare input").check()
    page.locator("#tab-B-button").click()
    page.locator("#B-function").get_by_label("threshold_greedy").check()
    visitor.wait_until_idle()
    monkeypatch.undo()
    Direct(photograph("astronaut").convert("RGB")).expect(page, "B", GreedyConfig())


def open_accordions(page):
    closed = page.locator("button.label-wrap:not(.open):visible")
    for _ in range(closed.count()):
        closed.first.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, served, scheme):
    with visiting(browser, color_scheme=scheme) as visitor:
        page = opened(visitor, f"{served}?image=astronaut&b=1&k=7&what=1")
        open_accordions(page)
        page.locator("#write-A").click()
        page.locator("#files-A a").first.wait_for(timeout=6000)
        page.wait_for_timeout(300)
        assert not violations(page)
        page.locator("#tab-B-button").click()
        page.locator("#B-function").get_by_label("dpc_knn").check()
        page.locator("#B-dpc_knn").wait_for()
        assert not violations(page)


FOCUS = """() => {
    const element = document.activeElement;
    const look = (one) => {
        const style = getComputedStyle(one);
        return [style.outlineStyle, style.outlineWidth, style.outlineColor, style.boxShadow,
            style.borderColor, style.backgroundColor].join();
    };
    const family = [element, element.parentElement, element.nextElementSibling];
    const looks = () => family.filter(Boolean).map(look).join("|");
    const focused = looks();
    element.blur();
    const without = looks();
    element.focus({focusVisible: true});
    return focused !== without;
}"""


def test_the_keyboard_reaches_all_controls(visitor, served):
    page = opened(visitor, f"{served}?image=astronaut&b=1")
    open_accordions(page)
    stops = tab_stops(page)
    assert all(stop.name for stop in stops), [stop for stop in stops if not stop.name]
    names = [stop.name for stop in stops]
    order = [
        "Paste from clipboard",
        "Image at hand",
        "Compare two settings",
        "Setting A",
        "cluster_tokens (SeTok)",
        "Preset: paper",
        "range slider for bandwidth",
        "One cluster",
        "range slider for Step",
        "Clusters and seeds of setting A",
        "range slider for Cluster of A",
        "Copy A as Python",
        "Write PNG and JSON of A",
        "range slider for Cluster of B",
        "Copy link to this page as it is",
    ]
    places = [names.index(name) for name in order]
    assert places == sorted(places)
    # Each radio is a stop, as the arrow keys do not move between them.
    page.locator("#view").get_by_label("Density").focus()
    page.keyboard.press("Space")
    expect_state(page, view="density")


def test_the_focus_is_visible(visitor, served):
    page = opened(visitor, served)
    seen = {}
    page.locator("#image input").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "document.activeElement.ariaLabel ?? document.activeElement.innerText ?? ''"
        )
        kind = page.evaluate(
            "document.activeElement.tagName + ' ' + (document.activeElement.type ?? '')"
        )
        seen.setdefault(kind, []).append((name, page.evaluate(FOCUS)))
    hidden = {kind: [n for n, shown in all_ if not shown] for kind, all_ in seen.items()}
    assert not any(hidden.values()), hidden


def test_texts_are_labelled_and_copied(visitor, served):
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = opened(visitor, served)
    open_accordions(page)
    for selector, label in {
        "link": "Link to this page as it is",
        "command-A": "A as command line",
        "yaml-A": "A as YAML",
        "python-A": "A as Python",
    }.items():
        text = page.get_by_label(label, exact=True)
        copy = page.locator(f"#copy-{selector}")
        copy.click()
        until(page, copy.inner_text, "Copied")
        assert page.evaluate("() => navigator.clipboard.readText()") == text.input_value()
        until(
            page,
            copy.inner_text,
            f"Copy {label[0].lower() if label[0] == 'L' else label[0]}{label[1:]}",
        )


def exported(page, setting="A"):
    return [
        page.locator(f"#{kind}-{setting} textarea").input_value()
        for kind in ("command", "yaml", "python")
    ]


QUERIES = {
    "soft": "k=9&bandwidth=0.4&offset=0.3",
    "dpc": "function=dpc_knn&num_clusters=9",
    "greedy": "function=threshold_greedy&threshold=0.9",
}
CONFIGS = {
    "soft": ClusterConfig(k=9, bandwidth=0.4, offset=0.3),
    "dpc": DPCConfig(num_clusters=9),
    "greedy": GreedyConfig(threshold=0.9),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_exports_repeat_what_is_shown(visitor, served, own_file, tmp_path, monkeypatch, name):
    page = opened(visitor, f"{served}?image=own%20image.png&{QUERIES[name]}")
    config = CONFIGS[name]
    direct = Direct(Image.open(own_file))
    direct.expect(page, "A", config)
    page.locator("#export-A button.label-wrap").click()
    command, text, code = exported(page)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "exported", "exec"), {})
    assert said.getvalue() == f"{direct.clusters(config).tokens} tokens\n"
    options = yaml.safe_load(text)
    if name == "soft":
        assert ClusterConfig(**options["model"]["cluster"]) == config
    else:
        changed = type(config)().to_dict() | options["options"]
        assert changed == config.to_dict()

    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert words[:2] == ["setok", "cluster"]
    if name == "soft":
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(words[1:]) == 0
    else:
        (tmp_path / "clusters").mkdir()
        method = Method(build_encoder(ENCODER), ENCODER, config)
        list(process_files([own_file], tmp_path / "clusters", method, 1))
    page.locator("#write-A").click()
    links = page.locator("#files-A a")
    links.first.wait_for(timeout=6000)
    got = {}
    for link in links.all():
        if not link.get_attribute("download"):
            continue
        with page.expect_download() as download:
            link.click()
        got[download.value.suggested_filename] = download.value.path().read_bytes()
    assert sorted(got) == ["own image.clusters.json", "own image.clusters.png"]
    for file, content in got.items():
        assert content == (tmp_path / "clusters" / file).read_bytes(), file
    assert json.loads(got["own image.clusters.json"])["config"] == config.to_dict()


def test_a_slider_answers_soon(visitor, served, record_property):
    page = opened(visitor, f"{served}?image=astronaut")
    times = [
        response_ms(
            page, "#A-cluster_tokens-bandwidth input[type=range]", 0.3 + i / 50, "#map-A img"
        )
        for i in range(15)
    ]
    median = float(torch.tensor(times).median())
    record_property("median_ms", median)
    record_property("threads", torch.get_num_threads())
    assert median < 1000, times


def test_the_command_serves_the_page(visitor, own_file):
    command = [sys.executable, "-m", "setok_kernels", "explore", str(own_file)]
    with served_command(command, stdin=subprocess.DEVNULL) as served:
        page = opened(visitor, served.url)
        Direct(Image.open(own_file)).expect(page, "A", ClusterConfig())
        assert choices(page)[0] == own_file.name
    assert "Traceback" not in "".join(served.lines)


def test_the_start_is_photographed(visitor, served, tmp_path):
    page = opened(visitor, f"{served}?image=astronaut")
    page.wait_for_timeout(300)
    assert screenshot(page, "explorer", tmp_path).stat().st_size > 100_000


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ("#A-cluster_tokens-bandwidth", "setting A: bandwidth: expected a number, got nothing"),
        ("#step", "step: expected a number, got nothing"),
    ],
)
def test_an_emptied_box_is_named_and_the_page_goes_on(visitor, served, box, text):
    page = opened(visitor, served)
    number = page.locator(f"{box} input[type=number]")
    number.fill("")
    assert text in toast(page)
    number.fill("1")
    set_field(page, "A", "cluster_tokens", "k", 9)
    until(page, lambda: state(page).first.k, 9)
