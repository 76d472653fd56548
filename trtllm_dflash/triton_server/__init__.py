"""Engines behind a Triton Inference Server: the export of a model repository, and the model that it
names.
"""
