"""Quantization of targets and drafters to FP8 and NVFP4 with NVIDIA ModelOpt."""
