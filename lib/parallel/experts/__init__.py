"""Experts: layers in which every token uses a few of many weights, and each device holds a few of the experts."""
