"""How well pictures follow hints: `experiment bps`."""
