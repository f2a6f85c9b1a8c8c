"""Learning to act from recorded data."""
