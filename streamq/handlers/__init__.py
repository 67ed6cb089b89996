"""What a handler has at hand while it runs."""
