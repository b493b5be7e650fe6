"""One forward pass: cut at layers, with its hooks, precision, eval mode, tail and perturbed copies."""
