"""Batches of thousands of instances: each ends at its limits even if it hangs, and no result is lost in a crash.

The *driver* (`engine`) hands instances to Dask *workers*. A worker has a *keeper*, a small process with torch already
imported, which forks one *child* per instance, watches it, and leaves none of its processes behind.
`results/README.md` documents the files that are kept. Linux only.
"""
