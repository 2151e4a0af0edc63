"""The study: GroupedNewton with one setting everywhere against tuned and untuned rivals."""
