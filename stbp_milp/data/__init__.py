"""Sources of clips: readers of published data sets, and procedural stand-ins that need no download."""
