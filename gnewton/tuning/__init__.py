"""Tuning on equal terms: every optimizer has the same number of trials of the same length."""
