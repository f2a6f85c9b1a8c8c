"""Erasing concepts by training: SPM, and ESD and UCE beside it."""
