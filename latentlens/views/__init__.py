"""What a person sees: figures, tables, reports."""
