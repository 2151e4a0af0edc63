"""The figures of the paper (arXiv 2312.03885): its set-ups and settings, one command for each figure."""
