"""The two main commands, `train` and `sample`: everything below them put together."""
