"""Parts of a state carried from one run into another, and the gradients that foretell what that does."""
