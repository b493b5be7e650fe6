"""The pneumonia example: phantoms or real chest X-rays in, a trained network and its heatmaps out."""

NOTICE = "Research software, not a medical device: nothing here is a diagnosis."
