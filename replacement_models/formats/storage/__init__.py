"""What file formats share: tensors, rows, names of places, checks."""
