"""Validation of a detector on a data set, as in YOLOv5's `val.py`."""
