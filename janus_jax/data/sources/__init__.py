"""Where records come from: random-access sources, one module per kind of data."""
