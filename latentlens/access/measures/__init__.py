"""What methods and experiments ask of a model, as functions that they can be given."""
