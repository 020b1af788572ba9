"""ZeRO and FSDP: replicas that share what they hold."""
