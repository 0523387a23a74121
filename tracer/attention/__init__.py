"""Attention explained: which heads carried an edge, and why they looked where they did."""
