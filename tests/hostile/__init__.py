"""Hostile instances for `python -m scripts.fuzz`, and an exact judge of what the verifier says of them."""
