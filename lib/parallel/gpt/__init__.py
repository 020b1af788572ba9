"""A GPT on any number of devices."""
