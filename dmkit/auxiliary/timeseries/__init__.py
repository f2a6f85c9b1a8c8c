"""Learning from series of sensors."""
