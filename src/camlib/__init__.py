"""camlib: where a neural network looked."""
