"""The engine directory: its files, manifest, configuration and input/output tensors."""
