"""How a model is split: a room per idea, a file per part of it."""
