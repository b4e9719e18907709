"""What a user puts in a series, and the tasks of requests."""
