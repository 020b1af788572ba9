"""What it costs, a file per idea."""
