"""Target and drafter architectures: configuration, tensors and decoder layer, one file each."""
