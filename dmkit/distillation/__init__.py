"""Fewer steps: distilling a text-to-image pipeline into one step."""
