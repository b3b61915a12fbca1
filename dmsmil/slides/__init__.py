"""Which tiles of a slide, and why those? (notebook 01)"""
