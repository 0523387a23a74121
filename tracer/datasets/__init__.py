"""Graphs of many prompts, written as a dataset."""
