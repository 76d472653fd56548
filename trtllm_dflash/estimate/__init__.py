"""What DFlash would give on a GPU that is not here: bytes and operations of the step's own graph,
and a roofline.
"""
