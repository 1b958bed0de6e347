"""Values in, values out: nothing here runs a model."""
