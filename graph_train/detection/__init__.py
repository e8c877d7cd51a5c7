"""Inference with trained weights: detectors, augmented inference, micro-batches, NMS and label files."""
