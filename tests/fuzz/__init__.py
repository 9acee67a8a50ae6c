"""Fuzzing: strange input succeeds or is refused, and nothing else happens. `run.py` is `make fuzz`."""
