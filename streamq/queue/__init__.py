"""The queue on the server: every command that streamq sends, and every call of an atomic step (`scripts`)."""
