"""The export for TensorRT-LLM."""
