"""Train one deep network as a chain of components that never wait for each other."""
