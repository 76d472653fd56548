"""TensorRT of both kinds, seen from outside."""
