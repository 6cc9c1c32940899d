"""Experiments: each is one command that trains, measures and reports."""
