"""How scores grow with data."""
