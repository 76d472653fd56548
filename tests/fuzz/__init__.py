"""Seeded mutations of the files that users bring, and what the product makes of each."""
