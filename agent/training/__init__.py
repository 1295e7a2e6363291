"""Training the tiny checkpoint: demonstrations of tasks become batches; the runtime's own model learns them."""
