"""Measurements, one command each; every one prints its figure beside its target."""
