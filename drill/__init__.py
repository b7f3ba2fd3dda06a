"""Judges a running Punctual from outside: load, witness, oracle, checker. `script/drill` runs it."""
