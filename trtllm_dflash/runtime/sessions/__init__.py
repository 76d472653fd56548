"""Sessions, which run one engine step: on ONNX Runtime, TensorRT or TensorRT-RTX."""
