"""Evaluations: suites of verifiable tasks, run by the real agent with the real tools."""
