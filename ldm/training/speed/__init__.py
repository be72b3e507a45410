"""The benchmark of speed and memory: every job is measured in its own process."""
