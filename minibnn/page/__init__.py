"""Reports as web pages of one file."""
