"""Serving engines with Triton Inference Server: model repositories and the model in them."""
