"""Queue of phrases: candidates of a batch, and phrases that leave."""

import torch

from setokim.training.stage1.phrase_queue import PhraseQueue


def test_candidates_are_the_different_phrases_of_batch_and_queue():
    queue = PhraseQueue(4)
    first = torch.tensor([[[1, 2], [3, 0]], [[1, 2], [0, 0]]])
    ids, own = queue.candidates(first)
    assert ids.tolist() == [[1, 2], [3, 0]]
    assert own.tolist() == [[True, True], [True, False]]
    queue.push(first)
    assert [row[:2] for row in queue.ids.tolist()] == [[1, 2], [3, 0], [1, 2], [0, 0]]
    ids, own = queue.candidates(torch.tensor([[[5, 6, 7]]]))
    assert ids.tolist() == [[1, 2, 0], [3, 0, 0], [5, 6, 7]]
    assert own.tolist() == [[False, False, True]]


def test_the_oldest_phrases_leave_and_long_ones_are_not_kept():
    queue = PhraseQueue(2)
    queue.push(torch.tensor([[[1], [2]]]))
    queue.push(torch.cat([torch.tensor([[[3]]]), torch.zeros(1, 1, 1, dtype=torch.int64)], 1))
    assert queue.ids[:, 0].tolist() == [3, 1]
    queue.push(torch.arange(1, 18)[None, None])
    assert queue.ids[:, 0].tolist() == [3, 1]
    ids, _ = queue.candidates(torch.arange(1, 18)[None, None])
    assert ids.shape == (3, 17)
    # The state is part of a checkpoint.
    assert torch.equal(queue.state_dict()["ids"], queue.ids)
    empty = PhraseQueue(0)
    empty.push(torch.tensor([[[1]]]))
    assert empty.candidates(torch.zeros(1, 1, 1, dtype=torch.int64))[0].shape == (0, 1)
