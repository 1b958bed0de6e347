"""What has been computed or said once, kept on disk: the activation cache, kept numbers, verdicts of judges."""
