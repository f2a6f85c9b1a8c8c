"""Methods for what workers send each other."""
