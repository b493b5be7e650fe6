"""A forward pass that is cut at layers: its hooks, precision, eval mode, tail and perturbed copies."""
