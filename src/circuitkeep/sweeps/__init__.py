"""The runs of a sweep: what each was, how it ended, and what they kept at what cost."""
