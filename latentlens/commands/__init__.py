"""What stands behind the command line, a file a command. Heavy modules are imported when a command runs."""
