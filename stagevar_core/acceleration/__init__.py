"""Acceleration policies: what runs at each scale, decided outside the models."""
