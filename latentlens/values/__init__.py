"""What the wings hand each other: frozen values that know nothing of models."""
