"""Guidance with the base model's unconditional prediction: `experiment guidance`."""
