"""From checkpoints to an engine directory: `resolve_models` decides, `child` runs `worker`, whose backend
builds.
"""
