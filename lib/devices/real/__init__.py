"""Real processes in the place of simulated devices: they talk over torch.distributed."""
