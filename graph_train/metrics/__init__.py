"""Detection metrics: IoU, precision, recall, average precision, confusion matrix."""
