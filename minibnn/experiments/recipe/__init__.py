"""What captions and options bring: `experiment recipe`."""
