"""Random-access sources of records, one module per kind of data."""
