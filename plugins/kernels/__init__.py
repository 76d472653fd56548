"""The CUDA sources, as a package of data: the builder compiles them for --arch with NVRTC."""
