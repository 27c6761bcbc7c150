"""Composes a run's config, checks it, and starts its processes."""
