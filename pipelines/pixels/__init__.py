"""Rendering of plans: decoding and drawing by DALI, or by the plugin on a CPU, and image caches."""
