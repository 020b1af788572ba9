"""Programs that use all of it: train a GPT, generate text. Run them simulated, or for real under `torchrun`."""
