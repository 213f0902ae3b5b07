"""Training of the codes of visual tokens, between stages 1 and 2."""
