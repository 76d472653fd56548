"""`make gpu-check`: what a GPU makes of our kernels and engines, in a JSON file and a table."""
