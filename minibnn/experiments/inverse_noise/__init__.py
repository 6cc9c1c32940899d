"""Flows with and without inverse noise correction: `experiment inverse-noise`."""
