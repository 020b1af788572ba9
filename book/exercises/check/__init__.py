"""The judge: runs a reader's program and says the first thing that is wrong with it."""
