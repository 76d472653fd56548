"""From checkpoints to an engine directory: `prepare` decides, `child` runs `worker`, whose backend
builds.
"""
