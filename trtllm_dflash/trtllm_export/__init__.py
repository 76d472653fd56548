"""Exports for TensorRT-LLM, whose own DFlash runs a pair in PyTorch on several GPUs and nodes."""
