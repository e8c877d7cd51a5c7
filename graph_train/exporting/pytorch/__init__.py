"""Export of networks as .pt files for YOLOv5, without PyTorch."""
