"""Statistics and linear algebra on plain arrays."""
