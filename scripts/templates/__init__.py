"""Writes the shipped workflows: `python -m scripts.templates`."""
