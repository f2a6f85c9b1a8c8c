"""Training one network on data that stay where they are."""
