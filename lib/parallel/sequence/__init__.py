"""Sequence parallelism: what tensor parallelism leaves whole, cut along the sequence."""
