"""What lies on the disk: data sets, their images and labels, and what is wrong with them."""
