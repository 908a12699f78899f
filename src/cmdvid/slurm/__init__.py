"""Jobs of a Slurm cluster: `cmdvid slurm` writes and submits them; `step` checks them from inside."""
