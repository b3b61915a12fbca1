"""What is learned, and what is a number worth? Fitting, the run store, metrics, cheap rules. (notebook 03)"""
