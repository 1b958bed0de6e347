"""The only door to a model: loading, hooks, capture, the activation cache, generation."""
