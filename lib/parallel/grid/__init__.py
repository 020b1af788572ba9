"""Several ways at once: data x pipeline x context x expert x tensor parallelism on one grid of ranks."""
