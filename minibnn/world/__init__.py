"""The picture world: drawings with captions, the bundled model made from them, and measures of what it draws."""
