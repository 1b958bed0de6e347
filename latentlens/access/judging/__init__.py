"""Who says what a text says: rules, people's labels, local models, servers."""
