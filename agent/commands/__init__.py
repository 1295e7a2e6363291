"""The commands of `v32`, one module each."""
