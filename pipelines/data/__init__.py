"""Data sets on disk: yaml files, images, labels, downloads, and problems with them."""
