"""Predictors for places where some mechanisms are others."""
