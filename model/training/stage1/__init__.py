"""Stage 1: trains the visual tokenizer and detokenizer."""
