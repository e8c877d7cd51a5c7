"""How trainings start: a new run, one that is resumed, an evolution of many, one of measured batch size."""
