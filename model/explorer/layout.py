"""Components of the page, where they stand, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from setokim.explorer.components import ImageFile, NumberSlider
from setokim.explorer.controls import Controls
from setokim.explorer.links import EDITS
from setokim.explorer.panels import VIEWS

TITLE = "Token clustering explorer"
NAMES = ("A", "B")
_EDIT_TITLES = ("all tokens", "without the cluster in view", "with the cluster in view moved")
# Fonts of the user's machine: the page asks no other host for anything. Texts have a contrast of
# at least 4.5, which the pale ones of the default have not.
THEME = gr.themes.Default(
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    color_accent="*primary_700",
    link_text_color="*primary_700",
    link_text_color_visited="*primary_700",
    link_text_color_dark="*primary_200",
    link_text_color_visited_dark="*primary_200",
    link_text_color_hover_dark="*primary_100",
    link_text_color_active_dark="*primary_100",
)
CSS = """
/* Hidden overflow would keep what is shown from staying in sight. */
.gradio-container { overflow: visible !important; }
#shown { position: sticky; top: 0; align-self: flex-start; max-height: 100vh; overflow: auto; }
#shown { flex-wrap: nowrap; }
#shown > * { flex-shrink: 0; }
#head h1 { margin: 0; font-size: 1.4rem; }
#shown .html-container { padding: 0 .75rem; }
#shown [role=status] { margin: 0; }
/* Its label would lie over the image. */
#upload .image-frame { padding-top: 1.75rem; }
input:focus-visible, textarea:focus-visible, button:focus-visible, [tabindex]:focus-visible {
    outline: 2px solid var(--primary-500) !important;
    outline-offset: 1px;
}
/* Gradio loses the colour of a checked circle with the focus. */
input[type=radio]:checked {
    background-color: var(--checkbox-background-color-selected) !important;
    border-color: var(--checkbox-border-color-selected) !important;
}
.dark [role=tab].selected { color: var(--primary-300); }
.sizes { max-height: 20rem; overflow: auto; }
.sizes table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.sizes tr { border: 0; border-bottom: 1px solid var(--border-color-primary); }
.sizes th, .sizes td { border: 0; padding: .1rem .5rem; text-align: right; }
.sizes .wide { width: 50%; text-align: left; }
.sizes .swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.sizes .bar { display: block; height: .6em; min-width: 1px; }
.notice { border: 2px solid; padding: .5rem 1rem; }
"""
# Browsers refuse it on pages of another host without TLS; then the button says so.
_COPY = """async (text) => {
    try {
        await navigator.clipboard.writeText(text);
        return "Copied";
    } catch {
        return "The browser does not allow it";
    }
}"""
_AFTERWARDS = "() => new Promise((done) => setTimeout(() => done('TITLE'), 1500))"
_SHOWN: dict[str, Any] = {"interactive": False, "buttons": ["download", "fullscreen"]}


@dataclass(frozen=True)
class Panel:
    """What is shown of one setting.

    Attributes:
        column: column of all the others.
        facts: numbers in a line.
        map: image of the clusters.
        detail: image of the chosen view.
        caption: caption of `detail`.
        label: slider of the cluster in view.
        sizes: table of the clusters.
        texts: the setting as command line, YAML and Python.
        write: button that makes files.
        files: files made.
    """

    column: gr.Column
    facts: gr.HTML
    map: gr.Image
    detail: gr.Image
    caption: gr.HTML
    label: NumberSlider
    sizes: gr.HTML
    texts: tuple[gr.Textbox, gr.Textbox, gr.Textbox]
    write: gr.Button
    files: gr.File

    @property
    def view(self) -> list[gr.components.Component]:
        """What shows one cluster or step."""
        return [self.detail, self.caption, self.label]

    @property
    def clustering(self) -> list[gr.components.Component]:
        """What else shows the clustering."""
        return [self.map, self.facts, self.sizes, *self.texts, self.files]


@dataclass(frozen=True)
class ReconstructionPanel:
    """Images from the tokens of the first setting.

    Attributes:
        edit: choice of the tokens.
        down: displacement of the moved token, in heights of the image.
        right: displacement of the moved token, in widths of the image.
        rebuilt: reconstruction from all tokens.
        edited: reconstruction from the tokens chosen.
    """

    edit: gr.Radio
    down: NumberSlider
    right: NumberSlider
    rebuilt: gr.Image
    edited: gr.Image

    @property
    def inputs(self) -> list[gr.components.Component]:
        """Controls of the tokens."""
        return [self.edit, self.down, self.right]


class Layout:
    """All components of the page, made within the `gr.Blocks` that is open.

    Attributes:
        notice: messages about the link.
        upload: input of an image.
        image: choice among the images at hand.
        uploads: state with this user's uploads, as entries of that choice.
        compare: flag of the second setting.
        controls: controls of both settings.
        panels: panels of both settings.
        view: choice of the view beside the map.
        step: step of the view of the scope.
        reconstruction: images from the tokens; None without a model.
        query: query of the link, hidden.
        link: link to the page as it is.

    Args:
        keys: keys of the images at hand.
        presets: names of the presets of `cluster_tokens`.
        has_model: flag: tokens can be turned into images.
    """

    def __init__(self, keys: list[str], presets: Sequence[str], has_model: bool):
        gr.Markdown(
            f"# {TITLE}\nThe clusters of an image's patches, drawn again with each change. "
            "A click on a patch shows its cluster.",
            elem_id="head",
        )
        self.notice = gr.HTML(visible=False, elem_id="notice")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self._add_input(keys)
                with gr.Tabs():
                    self.controls = [_make_controls(name, presets) for name in NAMES]
            with gr.Column(scale=3, min_width=480, elem_id="shown"):
                with gr.Row():
                    self.view = gr.Radio(
                        [(title, view) for view, title in VIEWS.items()],
                        value="mask",
                        label="View",
                        info="what the second image shows",
                        elem_id="view",
                        scale=3,
                    )
                    self.step = _count("Step", "of the scope loop", "step", scale=1)
                with gr.Row():
                    self.panels = [_make_panel(name) for name in NAMES]
                self.reconstruction = _make_reconstruction() if has_model else None
                self.link = _text("link", "link to this page as it is", 1)
                self.query = gr.Textbox(visible="hidden", label="Query", elem_id="query")

    def _add_input(self, keys: list[str]) -> None:
        self.upload = ImageFile(
            label="Image: drop, paste or choose a file",
            sources=["upload", "clipboard"],
            image_mode=None,
            type="filepath",
            height=220,
            buttons=[],
            elem_id="upload",
            alt_text="The image that is clustered",
        )
        self.image = gr.Dropdown(
            keys, value=keys[0] if keys else None, label="Image at hand", elem_id="image"
        )
        self.uploads = gr.State([])
        self.compare = gr.Checkbox(
            False, label="Compare two settings", info="shows B beside A", elem_id="compare"
        )


def _make_controls(name: str, presets: Sequence[str]) -> Controls:
    with gr.Tab(f"Setting {name}", elem_id=f"tab-{name}"):
        return Controls(name, presets)


def _make_panel(name: str) -> Panel:
    with gr.Column(visible=name == NAMES[0], min_width=320, elem_id=f"panel-{name}") as column:
        facts = gr.HTML(elem_id=f"facts-{name}")
        with gr.Row():
            with gr.Column(min_width=260):
                # Without label and buttons, which would take the clicks on patches below them.
                clusters = gr.Image(
                    alt_text=f"Clusters and seeds of setting {name}",
                    show_label=False,
                    elem_id=f"map-{name}",
                    format="jpeg",
                    interactive=False,
                    buttons=[],
                )
            with gr.Column(min_width=260):
                detail = _image(
                    f"detail-{name}", f"View of setting {name}", "jpeg", show_label=False
                )
        caption = gr.HTML(elem_id=f"caption-{name}")
        label = _count(
            f"Cluster of {name}", "in the view of one cluster; last the residual", f"label-{name}"
        )
        with gr.Accordion(f"Sizes of the clusters of {name}", open=False):
            sizes = gr.HTML(elem_id=f"sizes-{name}")
        with gr.Accordion(f"Export setting {name}", open=False, elem_id=f"export-{name}"):
            texts = (
                _text(f"command-{name}", f"{name} as command line", 1),
                _text(f"yaml-{name}", f"{name} as YAML", 2),
                _text(f"python-{name}", f"{name} as Python", 8),
            )
            write = gr.Button(f"Write PNG and JSON of {name}", elem_id=f"write-{name}")
            files = gr.File(
                label=f"Files of {name}, as setok cluster writes them",
                file_count="multiple",
                interactive=False,
                visible=False,
                elem_id=f"files-{name}",
            )
    return Panel(column, facts, clusters, detail, caption, label, sizes, texts, write, files)


def _make_reconstruction() -> ReconstructionPanel:
    with gr.Accordion("Reconstruction from the tokens of A"):
        with gr.Row():
            edit = gr.Radio(
                list(zip(_EDIT_TITLES, EDITS, strict=True)),
                value="all",
                label="Tokens",
                elem_id="edit",
                scale=2,
            )
            down, right = (
                NumberSlider(
                    -1,
                    1,
                    0,
                    step=0.02,
                    label=f"Move {way}",
                    info="in fractions of the image",
                    elem_id=f"move-{way}",
                )
                for way in ("down", "right")
            )
        with gr.Row():
            rebuilt = _image("rebuilt", "Reconstruction from all tokens", "png")
            edited = _image("edited", "Reconstruction from the tokens chosen", "png")
    return ReconstructionPanel(edit, down, right, rebuilt, edited)


def _image(elem_id: str, label: str, image_format: str, show_label: bool = True) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=show_label,
        alt_text=label,
        elem_id=elem_id,
        format=image_format,
        **_SHOWN,
    )


def _count(label: str, info: str, elem_id: str, scale: int | None = None) -> NumberSlider:
    return NumberSlider(
        0, 1, 0, step=1, precision=0, label=label, info=info, elem_id=elem_id, scale=scale
    )


def _text(elem_id: str, name: str, lines: int) -> gr.Textbox:
    """Make a text with a button that copies it.

    Gradio's own button would take the label of the text, and all have the same name.
    """
    text = gr.Textbox(
        label=f"{name[0].upper()}{name[1:]}",
        lines=lines,
        max_lines=40,
        buttons=[],
        interactive=False,
        elem_id=elem_id,
    )
    title = f"Copy {name}"
    copy = gr.Button(title, size="sm", elem_id=f"copy-{elem_id}")
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    copied = copy.click(None, [text], [copy], js=_COPY, **private)
    copied.then(None, None, [copy], js=_AFTERWARDS.replace("TITLE", title), **private)
    return text
