"""The queue on the server: every command that is sent, and who calls each atomic step."""
