"""What DFlash gives: measured on this machine, or estimated for another; as numbers, curves, plots
and advice.
"""
