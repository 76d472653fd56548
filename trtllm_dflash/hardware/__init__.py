"""GPUs and CPUs: architectures, devices, the CUDA driver, and what this machine can build and run."""
