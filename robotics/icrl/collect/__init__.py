"""Where learning histories come from. `run.collect` is the one door; a collector is chosen by its name."""
