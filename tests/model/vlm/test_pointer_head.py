"""Pointer head against a loop over hidden states."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from setokim.vlm.pointer_head import Memory, PointerHead

HIDDEN, BLOCKS = 6, (2, 3)
ROWS = torch.tensor([0, 0, 2])
POSITIONS = torch.tensor([1, 4, 3])


@pytest.fixture
def pointer():
    torch.manual_seed(0)
    module = PointerHead(HIDDEN, sum(BLOCKS), 4, BLOCKS)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


@pytest.fixture
def memory():
    torch.manual_seed(1)
    visual = torch.rand(3, 5) < 0.6
    visual[2, :3] = True
    tokens = torch.randn(3, 5, sum(BLOCKS)) * visual[..., None]
    # An image begins at the positions of the first and the last hidden state.
    begun = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]])
    return Memory(torch.randn(3, 5, HIDDEN), tokens, visual, begun)


def hidden_states(memory):
    return memory.hidden[ROWS, POSITIONS]


def by_loop(pointer, hidden_state, row, position, memory):
    begun = memory.begun[row]
    visible = [t for t in range(5) if memory.visual[row, t] and begun[t] < begun[position]]
    if not visible:
        return torch.cat([hidden_state, torch.zeros(pointer.condition_dim - HIDDEN)]), torch.zeros(
            5
        )
    query = pointer.query(hidden_state)
    logits = []
    for t in visible:
        earlier = memory.hidden[row, t - 1] if t else torch.zeros(HIDDEN)
        key = pointer.before(earlier) + pointer.at(memory.hidden[row, t])
        logits.append(pointer.sharpness.exp() * torch.cosine_similarity(query, key, dim=0))
    weights = torch.stack(logits).softmax(0)
    token = sum(w * memory.tokens[row, t] for w, t in zip(weights, visible, strict=True))
    context = sum(w * memory.hidden[row, t] for w, t in zip(weights, visible, strict=True))
    gates = pointer.gates(hidden_state).sigmoid()
    return torch.cat([hidden_state, context, token]), torch.cat(
        [gates[:1] * token[:2], gates[1:] * token[2:]]
    )


def test_output_equals_a_loop(pointer, memory):
    found = pointer(hidden_states(memory), ROWS, POSITIONS, memory)
    for i, (row, position) in enumerate(zip(ROWS.tolist(), POSITIONS.tolist(), strict=True)):
        expected = by_loop(pointer, memory.hidden[row, position], row, position, memory)
        assert_close(found.condition[i], expected[0])
        assert_close(found.base[i], expected[1])
    assert found.base[2].any() and found.choices is None


def test_masked_tokens_do_not_matter(pointer, memory):
    expected = pointer(hidden_states(memory), ROWS, POSITIONS, memory)
    hidden, tokens = memory.hidden.clone(), memory.tokens.clone()
    queries = hidden_states(memory)
    # Tokens of the image being generated, of a row without queries, and of no visual position.
    tokens[2, 3:] = tokens[0, 1:] = 9.0
    hidden[2, 4] = hidden[0, 2:] = 9.0
    hidden[1], tokens[1] = 9.0, 9.0
    tokens[~memory.visual] = 9.0
    found = pointer(queries, ROWS, POSITIONS, replace(memory, hidden=hidden, tokens=tokens))
    for name in ("condition", "base"):
        assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


def test_a_new_head_attends_to_tokens_after_a_similar_hidden_state(memory):
    torch.manual_seed(0)
    pointer = PointerHead(HIDDEN, sum(BLOCKS), 16, BLOCKS)
    pointer.sharpness.data.fill_(5.0)
    visual = torch.ones(1, 5, dtype=torch.bool)
    hidden, tokens = memory.hidden[:1], torch.randn(1, 5, sum(BLOCKS))
    begun = torch.tensor([[0, 0, 0, 0, 1]])
    # The query is the hidden state before token 3.
    memory = Memory(hidden, tokens, visual, begun)
    found = pointer(hidden[:, 2], ROWS[:1], POSITIONS[1:2], memory)
    assert_close(found.condition[0, 2 * HIDDEN :], tokens[0, 3], rtol=1e-3, atol=1e-3)
    gates = pointer.gates(hidden[0, 2]).sigmoid()
    assert gates.min() > 0.6
    assert_close(found.base[0, :2], gates[0] * tokens[0, 3, :2], rtol=1e-3, atol=1e-3)


def test_without_queries_the_output_depends_on_the_parameters(pointer, memory):
    empty = torch.zeros(0, dtype=torch.int64)
    found = pointer(memory.hidden[:0, 0], empty, empty, memory)
    assert found.condition.shape == (0, pointer.condition_dim)
    assert found.base.shape == (0, sum(BLOCKS))
    (found.condition.sum() + found.base.sum()).backward()
    assert all(parameter.grad is not None for parameter in pointer.parameters())


def test_gradients_reach_all_parameters(pointer, memory):
    found = pointer(hidden_states(memory), ROWS, POSITIONS, memory)
    (found.condition.square().sum() + found.base.square().sum()).backward()
    assert all(parameter.grad.any() for parameter in pointer.parameters())


def test_appended_memories_equal_the_whole(memory):
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
