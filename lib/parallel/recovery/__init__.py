"""Failing and recovering: checkpoints that any number of devices can read."""
