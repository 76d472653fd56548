"""Tokens to text and back: tokenizer, incremental detokenizer, stop words."""
