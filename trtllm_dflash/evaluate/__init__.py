"""Accuracy of an engine: perplexity, KL divergence, top-1 agreement and acceptance length.

All but the last are measured on a text, against a reference engine where one is given.
"""
