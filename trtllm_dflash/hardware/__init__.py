"""Architectures, devices and the CUDA driver; what this machine can build and run."""
