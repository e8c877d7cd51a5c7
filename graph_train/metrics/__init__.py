"""How good detections are: overlap, precision, recall, average precision, confusion."""
