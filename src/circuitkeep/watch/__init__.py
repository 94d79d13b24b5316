"""A training, followed in the browser from the CSV files that it writes."""
