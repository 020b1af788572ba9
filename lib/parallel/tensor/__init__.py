"""Tensor parallelism: one layer's matrices, cut over devices."""
