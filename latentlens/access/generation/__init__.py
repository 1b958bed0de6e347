"""Writing texts: batched, cached, steered, paired by seed."""
