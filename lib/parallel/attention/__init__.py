"""Self-attention whose heads live on different devices."""
