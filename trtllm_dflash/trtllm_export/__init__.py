"""Beyond one GPU: the same pair for TensorRT-LLM's own DFlash, which runs in PyTorch on several
GPUs and nodes.
"""
