"""Cutting tensors and linear layers: placements, shards, and the collectives that know their backward."""
