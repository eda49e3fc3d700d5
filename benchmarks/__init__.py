"""What `make bench` runs: speed, memory and start-up of the engine, as ratios where possible."""
