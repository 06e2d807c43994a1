"""Hostile instances for `scripts/fuzz.py`, and an exact judge of what the verifier says of them."""
