"""SAEs: opened, checked against a model, used to encode texts, trained."""
