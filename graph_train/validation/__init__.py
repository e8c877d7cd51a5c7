"""A detector measured on a data set, by YOLOv5's rules; `graph-val`."""
