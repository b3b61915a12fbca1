"""Pages for a browser, the committed notebooks, the results on the first page."""
