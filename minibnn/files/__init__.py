"""Weight files: reading every official layout, writing whole files."""
