"""The recipe that made the embedded default, stage by stage, and what measures it."""
