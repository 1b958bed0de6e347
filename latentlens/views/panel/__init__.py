"""The panel of `lm.explore`: a text as tokens, what they hold, and what changes when something is added."""
