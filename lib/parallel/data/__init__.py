"""Data parallelism: every device holds the whole model and works on its part of the batch."""
