"""What each control of the page does."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from setokim.explorer import panels
from setokim.explorer.components import NumberSlider
from setokim.explorer.controls import number, read, within_limits
from setokim.explorer.features import Features
from setokim.explorer.images import missing
from setokim.explorer.layout import NAMES, TITLE, Layout
from setokim.explorer.links import PageState, from_query, to_query
from setokim.utils.files import write_file
from setokim.visualization.cluster_maps import draw_figure
from setokim.visualization.cluster_record import to_json
from setokim.visualization.functions import Config
from setokim.visualization.image_clusters import ImageClusters

# The address bar always has the link to what is shown.
_SHOW_LINK = """(query) => {
    const url = window.location.origin + window.location.pathname + (query ? "?" + query : "");
    window.history.replaceState(window.history.state, "", url);
    return url;
}"""
_READ_LINK = "() => [window.location.search.slice(1)]"

# Answers come in the order of the events: side by side, an older one could replace a newer one. The
# order is that of all users, as Gradio has none for each.
_DRAWING = {"concurrency_id": "drawing", "concurrency_limit": 1}
_RECONSTRUCTING = {"concurrency_id": "reconstructing", "concurrency_limit": 1}

# Values of the inputs by component, and updates of some of the outputs.
Values = Mapping[Any, Any]
Updates = dict[Any, Any]


def build_page(features: Features) -> gr.Blocks:
    """Build the page.

    Args:
        features: images and their clusterings.
    """
    # Gradio's copies of images go after an hour: 80 kB a redraw. The explorer keeps what it needs.
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)
    ) as blocks:
        _Page(features).connect(blocks)
    return blocks


class _Page:
    """Handlers of the page's events.

    A handler computes all that it shows from the values of the controls: the server keeps nothing
    of a user but the uploads.
    """

    def __init__(self, features: Features):
        self._features = features
        keys = features.images.at_hand
        self._first = keys[0] if keys else ""
        self._layout = layout = Layout(
            keys, list(features.presets), features.reconstruction is not None
        )
        self._inputs = {layout.image, layout.compare, layout.view, layout.step}
        for controls, panel in zip(layout.controls, layout.panels, strict=True):
            self._inputs |= {panel.label, *controls.inputs}
        if layout.reconstruction is not None:
            self._inputs |= {*layout.reconstruction.inputs}
        # An event names what it may change and no more: Gradio makes all outputs of an event that
        # a handler does not return anew.
        self._details = [layout.step, layout.query, layout.panels[1].column]
        for panel in layout.panels:
            self._details += panel.view

    def connect(self, blocks: gr.Blocks) -> None:
        """Connect the handlers with the components."""
        layout = self._layout
        # Encoding may take seconds: the user sees that it goes on.
        busy = [panel.map for panel in layout.panels]
        waiting = {"show_progress": "minimal", "show_progress_on": busy}
        everything = list(self._details)
        for i, (controls, panel) in enumerate(zip(layout.controls, layout.panels, strict=True)):
            drawn = [*self._details, *panel.clustering]
            shown = [*drawn, *controls.outputs]
            everything += [*panel.clustering, *controls.outputs]
            changes = [component.input for component in controls.fields]
            self._on(changes, functools.partial(self._draw_setting, i), drawn)
            change = functools.partial(self._change_function, i)
            self._on([controls.function.input], change, [*drawn, *controls.groups])
            for preset, button in controls.presets.items():
                self._on([button.click], functools.partial(self._use_preset, i, preset), shown)
            self._on([panel.label.input], self._draw_details, self._details)
            self._on_select(i, panel.map)
            write = functools.partial(self._write_files, i)
            self._on([panel.write.click], write, [panel.files], **waiting)
        self._on([layout.view.input, layout.step.input], self._draw_details, self._details)
        drawn = [*self._details, *layout.panels[0].clustering, *layout.panels[1].clustering]
        self._on([layout.compare.input], self._draw_all, [*drawn, layout.upload])
        self._on([layout.image.input], self._draw_all, [*drawn, layout.upload], **waiting)
        taken = self._inputs | {layout.upload, layout.uploads}
        outputs = [*drawn, layout.image, layout.uploads]
        self._on([layout.upload.upload], self._take_upload, outputs, inputs=taken, **waiting)
        everything += [layout.image, layout.compare, layout.view, layout.notice]
        everything += [layout.upload, layout.uploads]
        if layout.reconstruction is not None:
            everything += layout.reconstruction.inputs
            changes = [component.input for component in layout.reconstruction.inputs]
            self._on(changes, self._draw_details, self._details)
        self._on(
            [blocks.load],
            self._open_link,
            everything,
            inputs={layout.query},
            js=_READ_LINK,
            **waiting,
        )
        layout.query.change(
            None, [layout.query], [layout.link], js=_SHOW_LINK, api_visibility="private"
        )

    def _on(
        self,
        triggers: Sequence[Any],
        handler: Callable[[Values], Updates],
        outputs: Sequence[Any],
        **options: Any,
    ) -> None:
        """Connect a handler; while it works, of all further changes the last one counts."""
        defaults = {
            "inputs": self._inputs,
            "outputs": list(outputs),
            "show_progress": "hidden",
            **_DRAWING,
        }
        self._follow(
            gr.on(
                list(triggers),
                _told(handler),
                trigger_mode="always_last",
                api_visibility="private",
                **(defaults | options),
            )
        )

    def _on_select(self, index: int, image: gr.Image) -> None:
        def select(values: Values, event: gr.SelectData) -> Updates:
            return _told(self._select_patch)(index, values, event.index)

        self._follow(
            image.select(
                select,
                self._inputs,
                [*self._details, self._layout.view],
                show_progress="hidden",
                api_visibility="private",
                **_DRAWING,
            )
        )

    def _follow(self, event: Any) -> None:
        """Let the reconstructions follow an event, where there is a model."""
        layout = self._layout.reconstruction
        if layout is not None:
            event.success(
                _told(self._reconstruct),
                self._inputs,
                [layout.rebuilt, layout.edited],
                show_progress="hidden",
                trigger_mode="always_last",
                api_visibility="private",
                **_RECONSTRUCTING,
            )

    def _draw_setting(self, index: int, values: Values) -> Updates:
        """Draw one setting after a change of its controls."""
        state = self._state(values)
        if index >= len(state.configs):
            # The second setting, prepared while it is not shown.
            return self._nothing
        return self._draw(state, [index])

    def _change_function(self, index: int, values: Values) -> Updates:
        """Show the fields of the function that was chosen, and draw its clustering."""
        controls = self._layout.controls[index]
        return controls.show_group(values[controls.function]) | self._draw_setting(index, values)

    def _use_preset(self, index: int, preset: str, values: Values) -> Updates:
        config = self._features.presets[preset]
        shown = self._layout.controls[index].show(config)
        state = self._state(values)
        if index >= len(state.configs):
            return shown
        state = dataclasses.replace(state, **{("first", "second")[index]: config})
        return shown | self._draw(state, [index])

    @property
    def _nothing(self) -> Updates:
        """Updates that change nothing; Gradio takes no empty ones."""
        return {self._layout.query: gr.skip()}

    def _draw_all(self, values: Values) -> Updates:
        """Draw both settings after a change of the image, or of their number."""
        state = self._state(values)
        small = self._features.encode(state.image).small
        return {self._layout.upload: small} | self._draw(state, [0, 1])

    def _draw_details(self, values: Values) -> Updates:
        """Draw the views beside the maps."""
        state = self._state(values)
        return self._draw(state, [])

    def _select_patch(self, index: int, values: Values, position: Sequence[int]) -> Updates:
        """Show the clusters of a patch in both settings.

        Args:
            index: index of the setting whose map was clicked; both have the same patches.
            values: values of the inputs.
            position: x and y in pixels of the map.
        """
        state = self._state(values)
        labels = []
        for config in state.configs:
            result = self._features.clusters(state.image, config)
            (width, height), (rows, columns) = result.photo.size, result.labels.shape
            row = min(int(position[1] * rows / height), rows - 1)
            column = min(int(position[0] * columns / width), columns - 1)
            labels.append(int(result.labels[row, column]))
        state = dataclasses.replace(state, view="mask", label=labels[0], second_label=labels[-1])
        return {self._layout.view: "mask"} | self._draw(state, [])

    def _take_upload(self, values: Values) -> Updates:
        """Take in an upload and draw it; without one, as after its removal, do nothing."""
        layout, upload = self._layout, values[self._layout.upload]
        if upload is None:
            return self._nothing
        path, name = upload
        key = self._features.images.add(path, name)
        uploads = [entry for entry in values[layout.uploads] if entry[1] != key]
        uploads.append((self._features.images.name(key), key))
        state = self._state({**values, layout.image: key})
        return {
            layout.uploads: uploads,
            layout.image: gr.update(choices=self._choices(uploads), value=key),
        } | self._draw(state, [0, 1])

    def _open_link(self, values: Values) -> Updates:
        """Show the state of a link; what cannot be used is named above the page."""
        layout = self._layout
        state, messages = from_query(_parameters(values[layout.query] or ""))
        if not values[layout.query]:
            state = dataclasses.replace(state, first=next(iter(self._features.presets.values())))
        images = self._features.images
        configs = []
        for config in state.configs:
            config, refused = within_limits(config)
            messages += refused
            configs.append(config)
        if state.image and state.image not in images:
            messages.append(missing(state.image))
        key = state.image if state.image in images else self._first
        fields = dict(zip(("first", "second"), configs, strict=False))
        state = dataclasses.replace(state, image=key, **fields)
        uploads = [] if not key or key in images.at_hand else [(images.name(key), key)]
        updates = {
            layout.notice: gr.update(value=panels.notice(messages), visible=bool(messages)),
            layout.uploads: uploads,
            layout.image: gr.update(choices=self._choices(uploads), value=key or None),
            layout.compare: state.second is not None,
            layout.view: state.view,
        }
        if layout.reconstruction is not None:
            chosen = (state.edit, state.down, state.right)
            updates |= dict(zip(layout.reconstruction.inputs, chosen, strict=True))
        for controls, config in zip(layout.controls, configs, strict=False):
            updates |= controls.show(config)
        if not key:
            return updates
        small = self._features.encode(key).small
        return updates | {layout.upload: small} | self._draw(state, [0, 1])

    def _write_files(self, index: int, values: Values) -> Updates:
        """Write the figure and the data of a setting."""
        state = self._state(values)
        config = state.configs[index]
        result = self._features.clusters(state.image, config)
        name = Path(result.name).stem
        photo = self._features.images.load(state.image)
        result = dataclasses.replace(result, photo=photo, name=name)
        # As long as file systems allow, with the endings.
        stem = f"{name.encode()[:200].decode(errors='ignore') or 'image'}.clusters"
        files = self._layout.panels[index].files
        # In the folder of uploads, from which Gradio serves files and removes old ones.
        folder = Path(tempfile.mkdtemp(dir=files.GRADIO_CACHE))
        method = self._features.method(config)
        draw_figure(result, method.encoder_name).save(folder / f"{stem}.png")
        write_file(folder / f"{stem}.json", to_json(result, method))
        written = [str(folder / f"{stem}.{end}") for end in ("png", "json")]
        return {files: gr.update(value=written, visible=True)}

    def _state(self, values: Values) -> PageState:
        """Read the state of the page from its controls.

        Raises:
            TypeError, ValueError: a value does not fit, or there is no image.
        """
        layout = self._layout
        if not values[layout.image]:
            raise ValueError("image: expected one to cluster, got none; upload one")
        configs: list[Config | None] = []
        for name, controls in zip(NAMES, layout.controls, strict=True):
            if configs and not values[layout.compare]:
                configs.append(None)
                continue
            try:
                configs.append(read([values[component] for component in controls.inputs]))
            except (TypeError, ValueError) as error:
                raise ValueError(f"setting {name}: {error}") from error
        label, second_label = (_count(panel.label, values) for panel in layout.panels)
        return PageState(
            image=values[layout.image],
            first=configs[0],
            second=configs[1],
            view=values[layout.view],
            label=label,
            second_label=second_label,
            step=_count(layout.step, values),
            **self._edit(values),
        )

    def _edit(self, values: Values) -> dict[str, Any]:
        """Return the fields of the state about the reconstruction."""
        layout = self._layout.reconstruction
        if layout is None:
            return {}
        return {
            "edit": values[layout.edit],
            "down": float(number("down", values[layout.down])),
            "right": float(number("right", values[layout.right])),
        }

    def _draw(self, state: PageState, maps: Sequence[int]) -> Updates:
        """Return the updates of everything that shows a clustering.

        Args:
            state: state of the page.
            maps: indices of the settings whose clustering has changed.
        """
        layout, updates = self._layout, {}
        results = [self._features.clusters(state.image, config) for config in state.configs]
        labels = [
            min(label, result.tokens) for label, result in zip(state.labels, results, strict=False)
        ]
        most = max(result.tokens for result in results)
        state = dataclasses.replace(
            state, label=labels[0], second_label=(labels * 2)[1], step=min(state.step, most)
        )
        for i, (result, label) in enumerate(zip(results, labels, strict=True)):
            updates |= self._draw_panel(i, result, state, label, i in maps)
        updates[layout.panels[1].column] = gr.update(visible=len(results) > 1)
        updates[layout.step] = gr.update(maximum=max(most, 1), value=state.step)
        updates[layout.query] = to_query(state)
        return updates

    def _draw_panel(
        self, index: int, result: ImageClusters, state: PageState, label: int, with_map: bool
    ) -> Updates:
        """Return the updates of one setting's panel."""
        panel, started = self._layout.panels[index], time.perf_counter()
        picture, caption = panels.detail(result, state.view, label, state.step)
        updates: Updates = {
            panel.detail: picture,
            panel.caption: panels.caption(caption),
            panel.label: gr.update(maximum=max(result.tokens, 1), value=label),
        }
        if with_map:
            updates[panel.map] = panels.cluster_map(result)
            name = NAMES[index]
            updates[panel.sizes] = panels.sizes_table(result, name)
            updates[panel.facts] = panels.facts(result, name, time.perf_counter() - started)
            texts = self._features.exports(state.image, state.configs[index])
            updates |= dict(zip(panel.texts, texts, strict=True))
            updates[panel.files] = gr.update(value=None, visible=False)
        return updates

    def _reconstruct(self, values: Values) -> Updates:
        """Draw the reconstructions, after everything else: they take several times as long."""
        layout, state = self._layout.reconstruction, self._state(values)
        assert layout is not None
        rebuilt, edited = self._features.reconstruct(
            state.image, state.first, state.label, state.edit, state.down, state.right
        )
        return {layout.rebuilt: rebuilt, layout.edited: edited}

    def _choices(self, uploads: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [*((key, key) for key in self._features.images.at_hand), *map(tuple, uploads)]


def _count(slider: NumberSlider, values: Values) -> int:
    """Return the value of a slider that counts something.

    Raises:
        ValueError: it is no whole number of at least 0.
    """
    name = str(slider.label).lower()
    value = number(name, values[slider])
    if not (value >= 0 and value % 1 == 0):
        raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
    return int(value)


def _parameters(query: str) -> list[tuple[str, str]]:
    """Return the parameters of a link, without those of Gradio itself, such as `__theme`."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return [(name, value) for name, value in pairs if not name.startswith("__")]


def _told(handler: Callable) -> Callable:
    """Show the user the message of a handler's `ValueError` or `TypeError`."""

    @functools.wraps(handler)
    def telling(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return telling
