"""Labels of features whose truth is measured: predicates on text, chosen here and scored there."""
