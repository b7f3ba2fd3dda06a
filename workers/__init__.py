"""The workers: claim a run, call its target, record the outcome."""
