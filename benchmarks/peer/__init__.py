"""The model library against its reference, each in its own environment: `make bench-peer`."""
