"""The interactive viewer: one HTML file of plain modules, and what it shows as packed columns."""
