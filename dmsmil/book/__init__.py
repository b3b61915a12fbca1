"""How is a study read: pages for a browser, the committed notebooks, the results on the first page."""
