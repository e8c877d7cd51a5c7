"""From plans to pixels: decoding, drawing, caches of images."""
