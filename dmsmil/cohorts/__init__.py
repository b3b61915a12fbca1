"""Which slides, whose, which label, which fold? (notebook 00)"""
