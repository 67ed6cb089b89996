"""A deterministic simulation: small worlds of workers, faults at the byte seam, virtual time, one checker."""
