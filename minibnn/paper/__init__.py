"""The whole paper by one command: what to run, the runs, shared out among processes, and the tables made of them."""
