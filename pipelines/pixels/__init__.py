"""From plans to pixels: decoding and drawing, by DALI or by the plugin on a CPU; caches of images."""
