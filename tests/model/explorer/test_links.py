import dataclasses
from urllib.parse import parse_qs, parse_qsl

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setok_kernels import ClusterConfig
from setok_kernels.arguments import MAX_COUNT
from setok_kernels.config import ALPHAS, CAPS, KERNELS, ORDERS
from setokim.explorer.links import VIEWS, PageState, from_query, to_query
from setokim.visualization.functions import DPCConfig, GreedyConfig

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
counts = st.integers(1, MAX_COUNT)
cluster_configs = st.builds(
    ClusterConfig,
    k=counts,
    max_clusters=counts,
    kernel=st.sampled_from(KERNELS),
    bandwidth=positive | st.integers(1, 10**300),
    beta=finite,
    temperature=positive,
    offset=finite,
    alpha=st.sampled_from(ALPHAS),
    distance_scale=st.sampled_from(["variance", "dim"]) | positive,
    score_norm=st.sampled_from(["max", None]),
    distinct_seeds=st.booleans(),
    stop_residual=st.floats(0, 1),
    min_mass=st.floats(0, allow_infinity=False),
    include_self=st.booleans(),
)
dpc_configs = st.builds(
    DPCConfig,
    num_clusters=counts,
    threshold=finite | st.none(),
    k=counts,
    min_clusters=counts,
    order=st.sampled_from(ORDERS),
    cap=st.sampled_from(CAPS),
) | st.builds(DPCConfig, num_clusters=st.none(), threshold=finite)
configs = cluster_configs | dpc_configs | st.builds(GreedyConfig, threshold=finite)
states = st.builds(
    PageState,
    image=st.text(st.characters(exclude_categories=["Cs"])),
    first=configs,
    second=configs | st.none() | st.just(ClusterConfig()),
    view=st.sampled_from(VIEWS),
    label=st.integers(0),
    step=st.integers(0),
)

FIELDS = {
    kind: [field.name for field in dataclasses.fields(kind)]
    for kind in (ClusterConfig, DPCConfig, GreedyConfig)
}
names = st.sampled_from(
    ["image", "function", "view", "label", "step", "b", "b.function", "b.", ""]
    + [f"{prefix}{name}" for known in FIELDS.values() for name in known for prefix in ("", "b.")]
)
values = st.sampled_from(
    [
        *("", "none", "true", "false", "nan", "-inf", "1e999", "-1", "0", "0.5", "3", "1_0", "٣"),
        *("dpc_knn", "threshold_greedy", "scope", "dim", "\udcff", "\0", "a, got b: c", "9" * 5000),
    ]
)


@given(states)
def test_every_state_makes_the_round_trip(state):
    query = to_query(state)
    assert query.isascii() and not set(query) & set(' "<>#\n')
    pairs = parse_qsl(query, strict_parsing=True) if query else []
    back, messages = from_query(dict(pairs))
    assert messages == [] and back == state
    # Equal as text too, which tells 1 from 1.0 and True; -0.0 equals the default 0.0.
    for config, again in ((state.first, back.first), (state.second, back.second)):
        if config is not None:
            expected = repr(config.to_dict()).replace("-0.0,", "0.0,")
            assert repr(again.to_dict()).replace("-0.0,", "0.0,") == expected


@given(st.lists(st.tuples(names | st.text(), values | st.text(st.characters()))))
def test_no_text_raises_and_what_is_refused_has_its_default(pairs):
    state, messages = from_query(pairs)
    given_names = {name for name, _ in pairs}
    assert len(messages) <= len(given_names)
    for message in messages:
        assert ": expected " in message and ", got " in message and "\n" not in message
    # What was taken is a state whose own link is read without a message.
    again, none = from_query(dict(parse_qsl(to_query(state))))
    assert none == [] and again == state


def test_a_link_has_what_differs_under_short_names():
    state = PageState("astronaut", ClusterConfig(bandwidth=0.35), view="scope", step=3)
    assert to_query(state) == "image=astronaut&bandwidth=0.35&view=scope&step=3"
    two = PageState(first=DPCConfig(k=7), second=ClusterConfig(bandwidth=0.2, score_norm=None))
    assert to_query(two) == "function=dpc_knn&k=7&b.bandwidth=0.2&b.score_norm=none"
    assert to_query(PageState(second=ClusterConfig())) == "b=1"
    assert to_query(PageState(second=GreedyConfig())) == "b.function=threshold_greedy"
    assert to_query(PageState("a b&c=d/é+.png")) == "image=a%20b%26c%3Dd/%C3%A9%2B.png"
    assert to_query(PageState()) == ""


def test_tensors_and_numbers_of_numpy_become_numbers():
    config = ClusterConfig(
        bandwidth=torch.tensor(0.25), beta=torch.tensor(0.1).double().numpy()[()]
    )
    assert to_query(PageState(first=config)) == f"bandwidth=0.25&beta={0.10000000149011612}"
    greedy = GreedyConfig(torch.tensor(0.3).double().numpy()[()])
    assert "threshold=0.3000000" in to_query(PageState(first=greedy))


@pytest.mark.parametrize(
    ("query", "messages"),
    [
        ("bandwidth=x", ["bandwidth: expected a real number, got 'x'"]),
        ("bandwidth=nan", ["bandwidth: expected a finite number, got nan"]),
        ("bandwidth=-1", ["bandwidth: expected more than 0, got -1"]),
        ("bandwidth=1e400", ["bandwidth: expected a finite number, got inf"]),
        ("k=2.0", ["k: expected an int, got 2.0"]),
        ("k=99999999999", [f"k: expected at most {MAX_COUNT}, got 99999999999"]),
        ("kernel=box", ["kernel: expected one of gaussian, laplacian, epanechnikov, got 'box'"]),
        ("distinct_seeds=no", ["distinct_seeds: expected a bool, got 'no'"]),
        ("view=sound", ["view: expected one of mask, scope, density, delta, score, got 'sound'"]),
        ("label=-1", ["label: expected at least 0, got -1"]),
        ("step=x", ["step: expected an int, got 'x'"]),
        ("k=3&k=4", ["k: expected one value, got 2"]),
        (
            "function=kmeans",
            ["function: expected one of cluster_tokens, dpc_knn, threshold_greedy, got 'kmeans'"],
        ),
    ],
)
def test_each_parameter_that_cannot_be_used_has_a_message(query, messages):
    state, said = from_query(parse_qs(f"{query}&offset=0.25"))
    assert said == messages
    assert state == PageState(first=ClusterConfig(offset=0.25))


def test_options_that_do_not_fit_together():
    state, messages = from_query({"function": "dpc_knn", "num_clusters": "none", "k": "3"})
    assert state == PageState(first=DPCConfig(k=3))
    assert messages == [
        "num_clusters: expected a number, or else a rate or a threshold, got neither"
    ]
    both = from_query({"function": "dpc_knn", "num_clusters": "none", "threshold": "x"})
    assert both[0] == PageState(first=DPCConfig()) and len(both[1]) == 2


def test_the_second_setting_has_messages_of_its_own():
    state, messages = from_query(
        {"k": "3", "b.k": "0", "b.beta": "0.5", "b.function": "x", "b.threshold": "1"}
    )
    assert state == PageState(first=ClusterConfig(k=3), second=ClusterConfig(beta=0.5))
    assert messages[:2] == [
        "b.k: expected at least 1, got 0",
        "b.function: expected one of cluster_tokens, dpc_knn, threshold_greedy, got 'x'",
    ]
    assert messages[2].startswith("b.threshold: expected one of image, view, label, step, ")
    assert messages[2].endswith(", got 'b.threshold'") and "b.bandwidth" in messages[2]
    state, messages = from_query({"b": "yes"})
    assert state == PageState() and messages == ["b: expected 1, got 'yes'"]
    # The setting is there even if its only option cannot be used.
    assert from_query({"b.k": "x"})[0].second == ClusterConfig()


def test_options_of_another_function_are_unknown():
    state, messages = from_query({"function": "threshold_greedy", "bandwidth": "1"})
    assert state == PageState(first=GreedyConfig())
    assert messages == [
        "bandwidth: expected one of image, view, label, step, edit, down, right, b.label, "
        "function, threshold, b, "
        "got 'bandwidth'"
    ]


def test_a_megabyte_is_shortened_in_messages():
    long = "x" * 2**20
    pairs = [("image", "a"), ("kernel", long), ("k", "9" * 2**20), (long, "1"), ("view", long)]
    state, messages = from_query([*pairs, ("b\n", "1"), ("offset", "0.1")])
    assert state == PageState("a", ClusterConfig(offset=0.1))
    assert len(messages) == 5 and all(len(message) < 500 for message in messages)
    assert messages[0].endswith(f"got '{'x' * 59}…")
    assert messages[-1].startswith("b\\n: expected one of ")


def test_duplicates_are_found_in_all_forms_of_parameters():
    class Multi(dict):
        def multi_items(self):
            return [("k", "3"), ("k", "4")]

    expected = ["k: expected one value, got 2"]
    for parameters in (Multi(k="4"), [("k", "3"), ("k", "4")], {"k": ["3", "4"]}):
        assert from_query(parameters) == (PageState(), expected)
    assert from_query({"k": None})[1] == ["k: expected text, got None"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": 3}, "image: expected a string, got 3"),
        ({"image": "\udcff"}, "image: expected text without surrogates, got '.udcff'"),
        ({"first": None}, "first: expected options of a clustering, got None"),
        ({"second": "x"}, "second: expected options of a clustering, got 'x'"),
        ({"view": "x"}, "view: expected one of mask, "),
        ({"step": True}, "step: expected an int, got True"),
    ],
)
def test_a_state_checks_its_fields(fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PageState(**fields)


def test_the_cluster_of_a_setting_that_is_not_shown_is_left_out():
    assert to_query(PageState(second_label=3)) == ""
    state = PageState(second=ClusterConfig(), second_label=3, edit="moved", down=-0.5, right=0.25)
    assert from_query(parse_qs(to_query(state))) == (state, [])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("edit", "some", "edit: expected one of all, without, moved, got 'some'"),
        ("down", "2", "down: expected at most 1, got 2"),
        ("b.label", "-1", "b.label: expected"),
    ],
)
def test_reconstructions_and_clusters_that_do_not_fit(name, value, message):
    [said] = from_query({name: value})[1]
    assert said.startswith(message)
