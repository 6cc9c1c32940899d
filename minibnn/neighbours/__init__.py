"""Neighbouring systems of the field: base-model guidance, GRAFT, inverse noise correction, Bayesian Power Steering."""
