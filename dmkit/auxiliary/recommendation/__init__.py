"""Recommending items to users."""
