"""The training loop and the parts it is assembled from."""
