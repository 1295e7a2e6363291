"""The embedded checkpoint, its corpus and its recipe; found by v32.model_runtime through importlib.resources."""
