"""The command line. Its modules import without torch; a command loads it when its work begins."""
