"""Prefect flows and the command line: what happens when, and in which order."""
