"""Looking back for earlier visual tokens, against a loop over states."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from setokim.vlm.pointer_head import Memory, Recall

HIDDEN, BLOCKS = 6, (2, 3)
ROWS = torch.tensor([0, 0, 2])
PLACES = torch.tensor([1, 4, 3])


@pytest.fixture
def recall():
    torch.manual_seed(0)
    module = Recall(HIDDEN, sum(BLOCKS), 4, BLOCKS)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


@pytest.fixture
def memory():
    torch.manual_seed(1)
    visual = torch.rand(3, 5) < 0.6
    visual[2, :3] = True
    tokens = torch.randn(3, 5, sum(BLOCKS)) * visual[..., None]
    # A picture begins at the places of the first and the last state.
    begun = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]])
    return Memory(torch.randn(3, 5, HIDDEN), tokens, visual, begun)


def states_of(memory):
    return memory.hidden[ROWS, PLACES]


def by_hand(recall, state, row, place, memory):
    begun = memory.begun[row]
    seen = [t for t in range(5) if memory.visual[row, t] and begun[t] < begun[place]]
    if not seen:
        return torch.cat([state, torch.zeros(recall.condition_dim - HIDDEN)]), torch.zeros(5)
    query = recall.query(state)
    likeness = []
    for t in seen:
        earlier = memory.hidden[row, t - 1] if t else torch.zeros(HIDDEN)
        key = recall.before(earlier) + recall.at(memory.hidden[row, t])
        likeness.append(recall.sharpness.exp() * torch.cosine_similarity(query, key, dim=0))
    share = torch.stack(likeness).softmax(0)
    token = sum(s * memory.tokens[row, t] for s, t in zip(share, seen, strict=True))
    meant = sum(s * memory.hidden[row, t] for s, t in zip(share, seen, strict=True))
    gates = recall.gates(state).sigmoid()
    return torch.cat([state, meant, token]), torch.cat(
        [gates[:1] * token[:2], gates[1:] * token[2:]]
    )


def test_it_is_the_loop(recall, memory):
    condition, base = recall(states_of(memory), ROWS, PLACES, memory)
    for i, (row, place) in enumerate(zip(ROWS.tolist(), PLACES.tolist(), strict=True)):
        expected = by_hand(recall, memory.hidden[row, place], row, place, memory)
        assert_close(condition[i], expected[0])
        assert_close(base[i], expected[1])
    assert base[2].any()


def test_what_is_not_seen_does_not_matter(recall, memory):
    expected = recall(states_of(memory), ROWS, PLACES, memory)
    hidden, tokens = memory.hidden.clone(), memory.tokens.clone()
    states = states_of(memory)
    # In the picture that is being drawn, in a row without states, and where no token is.
    tokens[2, 3:] = tokens[0, 1:] = 9.0
    hidden[2, 4] = hidden[0, 2:] = 9.0
    hidden[1], tokens[1] = 9.0, 9.0
    tokens[~memory.visual] = 9.0
    found = recall(states, ROWS, PLACES, replace(memory, hidden=hidden, tokens=tokens))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_a_new_one_finds_what_had_a_like_state_before(memory):
    torch.manual_seed(0)
    recall = Recall(HIDDEN, sum(BLOCKS), 16, BLOCKS)
    recall.sharpness.data.fill_(5.0)
    visual = torch.ones(1, 5, dtype=torch.bool)
    hidden, tokens = memory.hidden[:1], torch.randn(1, 5, sum(BLOCKS))
    begun = torch.tensor([[0, 0, 0, 0, 1]])
    # The state before token 3, once more.
    read = Memory(hidden, tokens, visual, begun)
    condition, base = recall(hidden[:, 2], ROWS[:1], PLACES[1:2], read)
    assert_close(condition[0, 2 * HIDDEN :], tokens[0, 3], rtol=1e-3, atol=1e-3)
    gates = recall.gates(hidden[0, 2]).sigmoid()
    assert gates.min() > 0.6
    assert_close(base[0, :2], gates[0] * tokens[0, 3, :2], rtol=1e-3, atol=1e-3)


def test_no_states_still_depend_on_the_parameters(recall, memory):
    none = torch.zeros(0, dtype=torch.int64)
    condition, base = recall(memory.hidden[:0, 0], none, none, memory)
    assert condition.shape == (0, recall.condition_dim) and base.shape == (0, sum(BLOCKS))
    (condition.sum() + base.sum()).backward()
    assert all(parameter.grad is not None for parameter in recall.parameters())


def test_gradients(recall, memory):
    condition, base = recall(states_of(memory), ROWS, PLACES, memory)
    (condition.square().sum() + base.square().sum()).backward()
    assert all(parameter.grad.any() for parameter in recall.parameters())


def test_two_readings_are_one(memory):
    parts = [
        Memory(*(getattr(memory, f)[:, a:b] for f in ("hidden", "tokens", "visual")), begun)
        for a, b, begun in (
            (0, 3, memory.begun[:, :3]),
            (3, 5, torch.tensor([[0, 0]] * 2 + [[1, 1]])),
        )
    ]
    whole = parts[0].then(parts[1])
    for name in ("hidden", "tokens", "visual", "begun"):
        assert torch.equal(getattr(whole, name), getattr(memory, name))
