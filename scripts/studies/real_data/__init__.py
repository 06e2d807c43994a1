"""The verifier on data that nobody made for it: `python -m scripts.studies.real_data`."""
