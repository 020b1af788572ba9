"""Programs for `torch.distributed` as others write them: they know nothing of this book, and run under torchrun too."""
