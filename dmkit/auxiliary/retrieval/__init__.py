"""Methods for search by vectors."""
