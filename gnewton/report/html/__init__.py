"""The page: tables and interactive curves in one file that needs nothing else, not even a network."""
