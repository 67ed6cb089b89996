"""What a handler can use while it runs: its delivery, progress, the request to stop, an inbox."""
