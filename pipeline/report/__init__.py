"""The report: one HTML file with pictures of what was seen, stored, predicted and scored."""
