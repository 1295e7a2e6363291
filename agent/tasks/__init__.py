"""Verifiable tasks: synthetic worlds, questions about them, the right answers and how to reach them with tools."""
