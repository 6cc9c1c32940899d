"""The corruption stage of the textured model: `experiment stage`, `stage-report`, `stage-views` and `stage-starts`."""
