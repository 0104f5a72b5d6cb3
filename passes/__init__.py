"""Passes over the graph: pure functions, one file each; `pipeline.py` says which run and in what order."""
