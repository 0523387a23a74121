"""What dictionaries are worth: errors, the model with MLPs replaced, graphs, widths compared."""
