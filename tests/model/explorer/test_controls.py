"""The controls of a setting without a browser: their fields, and what their values mean."""

import dataclasses

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setok_kernels import ClusterConfig, config
from setokim.explorer.controls import FIELDS, Choice, Controls, Slider, Switch, read, within_limits
from setokim.visualization.functions import CONFIGS, DPCConfig, GreedyConfig

PRESETS = (ClusterConfig(), ClusterConfig.paper(), DPCConfig(), GreedyConfig())


@pytest.fixture(scope="module")
def controls():
    with gr.Blocks():
        return Controls("A", ["default", "paper"])


def values_of(kind):
    """Values that a control of this kind can have."""
    if isinstance(kind, Switch):
        return st.booleans()
    if isinstance(kind, Choice):
        return st.sampled_from([None if text == "none" else text for text in kind.texts])
    numbers = (
        st.integers(int(kind.low), int(kind.high))
        if kind.step == 1
        else st.floats(kind.low, kind.high)
    )
    texts = st.sampled_from([None if text == "none" else text for text in kind.instead or ("",)])
    return numbers | texts if kind.instead else numbers


def configs_of(function):
    fields = {field: values_of(kind) for field, (kind, _) in FIELDS[function].items()}
    # dpc_knn needs a number of clusters or a threshold.
    chosen = st.fixed_dictionaries(fields).filter(
        lambda one: function != "dpc_knn" or {one["num_clusters"], one["threshold"]} != {None}
    )
    return chosen.map(lambda values: CONFIGS[function](**values))


CHOSEN = st.sampled_from(sorted(FIELDS)).flatmap(configs_of)


def shown_values(controls, chosen):
    updates = controls.show(chosen)
    return [updates.get(component, component.value) for component in controls.inputs]


@given(CHOSEN)
def test_what_is_shown_is_read_back(controls, chosen):
    assert read(shown_values(controls, chosen)) == chosen
    assert within_limits(chosen) == (chosen, [])


@pytest.mark.parametrize("function", FIELDS)
def test_every_field_has_a_control(function):
    assert set(FIELDS[function]) == {field.name for field in dataclasses.fields(CONFIGS[function])}


def test_the_choices_are_those_of_the_package():
    texts = {field: kind for fields in FIELDS.values() for field, (kind, _) in fields.items()}
    assert texts["kernel"].texts == config.KERNELS and texts["alpha"].texts == config.ALPHAS
    assert texts["order"].texts == config.ORDERS and texts["cap"].texts == config.CAPS
    assert texts["distance_scale"].instead == config.DISTANCE_SCALES


@pytest.mark.parametrize("chosen", PRESETS)
def test_presets_are_within_the_limits(chosen):
    assert within_limits(chosen) == (chosen, [])


def test_a_value_out_of_the_limits_is_named_and_gets_its_default():
    chosen, messages = within_limits(ClusterConfig(bandwidth=50.0, k=7))
    assert chosen == ClusterConfig(k=7)
    assert messages == ["bandwidth: expected 0.005 to 3 here, got 50.0"]


def test_what_does_not_fit_without_a_refused_value_has_its_default_too():
    chosen, messages = within_limits(DPCConfig(num_clusters=None, threshold=5.0))
    assert chosen == DPCConfig()
    assert messages == ["threshold: expected 0 to 2 here, got 5.0"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bandwidth", None, "bandwidth: expected a number, got nothing"),
        ("bandwidth", "x", "bandwidth: expected a number, got 'x'"),
        ("bandwidth", float("inf"), "bandwidth: expected 0.005 to 3 here, got inf"),
        ("bandwidth", float("nan"), "bandwidth: expected 0.005 to 3 here, got nan"),
        ("k", 2.5, "k: expected a whole number, got 2.5"),
        ("k", True, "k: expected a number, got True"),
        ("kernel", "cosine", "kernel: expected one of gaussian, laplacian, epanechnikov"),
    ],
)
def test_values_that_cannot_be_read(controls, field, value, message):
    values = [component.value for component in controls.inputs]
    [index] = [i for i, one in enumerate(controls.inputs) if one.elem_id.endswith(f"kens-{field}")]
    values[index] = value
    with pytest.raises(ValueError, match=message):
        read(values)


def test_an_emptied_field_of_another_function_does_not_matter(controls):
    values = [component.value for component in controls.inputs]
    [index] = [i for i, one in enumerate(controls.inputs) if one.elem_id == "A-dpc_knn-k"]
    values[index] = None
    assert read(values) == ClusterConfig()


@pytest.mark.parametrize("function", ["kmeans", None, ["dpc_knn"], {}])
def test_unknown_functions(controls, function):
    values = [component.value for component in controls.inputs]
    with pytest.raises(ValueError, match="function: expected one of cluster_tokens, dpc_knn"):
        read([function, *values[1:]])


def test_sliders_hold_their_start():
    for fields in FIELDS.values():
        for kind, _ in fields.values():
            if isinstance(kind, Slider):
                assert kind.low <= kind.start <= kind.high or not kind.instead
