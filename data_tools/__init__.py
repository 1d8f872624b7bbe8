"""The cache at rest: where samples come from, how columns are stored and read. No torch in here."""
