"""Types for placements: which tensor is whole, cut, or not yet summed, checked before a number is computed."""
