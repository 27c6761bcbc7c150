"""A model behind HTTP: one process, one model, requests gathered into batches."""
