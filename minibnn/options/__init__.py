"""The options of each command, and how a command line becomes them; no torch, so that `--help` answers at once."""
