"""Studies: slow runs whose tables lie in results/studies. Every one is a command, `python -m scripts.studies.NAME`."""
