"""Published target and drafter pairs, and GPUs: JSON files, and the modules that load them."""
