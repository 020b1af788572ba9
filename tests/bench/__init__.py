"""The parts of `make bench`. Every part runs in a process of its own and returns plain numbers."""
