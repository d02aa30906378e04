"""How long a process that is at work waits for a log that went away."""

PATIENCE_S = 180.0
"""A restart of the broker or a broken network of up to so long is ridden out in the process; beyond
it the process ends with exit code 69, and whoever starts it again goes on from the log."""
