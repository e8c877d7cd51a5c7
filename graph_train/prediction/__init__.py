"""Detections for images and videos without labels; `graph-predict`."""
