"""What is trained: all of the UNet, LoRA or OFT, each with and without Bayesian weights."""
