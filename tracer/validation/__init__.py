"""How far to believe a graph: its predictions beside what interventions do to the model."""
