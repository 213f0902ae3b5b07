"""Stages 2 and 3: train the language model on visual tokens."""
