"""From checkpoints to an engine directory.

`resolve` checks the models and sizes. `worker_process` runs `worker`, whose backend (`ort` or
`trt`) compiles the step graph.
"""
