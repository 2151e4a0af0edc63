"""The command line. Everything here answers without torch; commands load it when they start to work."""
