"""Files to batches: indexes, clips, latents and the data module; no networks."""
