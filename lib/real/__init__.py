"""The same `Group` over torch.distributed: programs as real processes. Nobody has to read it to learn the book."""
