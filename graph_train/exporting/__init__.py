"""Trained weights as files of other programs; `graph-export`."""
