"""From a plan to changed states in a running forward."""
