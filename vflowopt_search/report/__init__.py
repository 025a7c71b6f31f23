"""What a study looks like: records of its numbers, figures of the records, one page of figures."""
