"""The laboratory: the paper's Eq. 1-2 as code, probes that look into models, and the monitor of a training."""
