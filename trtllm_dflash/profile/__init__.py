"""Benchmarks against plain decoding, the reference package and Hugging Face; recommended drafts."""
