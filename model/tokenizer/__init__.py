"""SeTok's visual tokenizer and detokenizer: patches to semantic tokens, and back to pixels."""
