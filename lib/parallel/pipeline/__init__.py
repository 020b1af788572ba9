"""Whole layers on each device, and schedules that say who works on which micro-batch when."""
