"""What a model says, decided by a test; needs nothing but torch."""

import torch


def logits_that_say(ids, vocabulary):
    """A `SetokimModel.logits` of which these ids are the likeliest, one call after the other."""
    following = iter(ids)

    def logits(self, hidden):
        found = torch.zeros(len(hidden), vocabulary)
        found[:, next(following)] = 1
        return found

    return logits
