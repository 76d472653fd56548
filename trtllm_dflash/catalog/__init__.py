"""Published target and drafter pairs, and GPUs, as data."""
