"""Measurements of camlib and its peers. ``benchmarks/run NAME`` runs one of them, in an environment with the peers."""
