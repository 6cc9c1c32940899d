"""The networks of Stable Diffusion, under the names in the official files."""
