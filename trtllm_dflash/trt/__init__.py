"""TensorRT in its two kinds: which of them a process uses, and all that differs between them."""
