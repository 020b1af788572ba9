"""A Llama on any number of devices: the layer of today, with rotary positions, grouped queries and a gated MLP."""
