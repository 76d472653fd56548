"""What DFlash would give on a GPU that is not here: the work of its kernels, and a roofline."""
