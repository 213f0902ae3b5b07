"""SeTokim: a causal language model that reads, generates, edits and segments images."""
