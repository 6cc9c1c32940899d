"""Whether the corruption stage of Stable Diffusion is one of guidance: `experiment sd-gains`."""
