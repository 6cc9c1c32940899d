"""The paper's Table 3, where in the UNet to be Bayesian: see `methods.py`, whose runs it shares."""

from . import methods


def main(arguments):
    methods.main(arguments, "where")
