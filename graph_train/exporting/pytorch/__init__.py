"""Networks as .pt files that YOLOv5 loads, written without PyTorch."""
