"""How a training starts: a new run, a resumed one, or an evolution."""
