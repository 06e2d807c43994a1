"""Batches: thousands of instances, each ended at its limit whatever hangs, nothing lost when a process dies.

The *driver* (`engine`) hands instances to Dask *workers*; a worker has a *keeper*, a small process with torch already
imported, that forks one *child* an instance, watches it, and leaves nothing of it behind. `results/README.md`
documents what is kept. Linux only.
"""
