"""Jobs of a Slurm cluster: `cmdvid slurm` submits them; `step` checks them from inside."""
