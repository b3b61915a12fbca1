"""What does it cost? (notebook 08)"""
