"""The pneumonia example: phantoms or real chest X-rays in, a trained network and its heatmaps out."""
