"""Programs of others, written for `torch.distributed`, on simulated devices."""
