"""Commands that are imported only when they are called."""
