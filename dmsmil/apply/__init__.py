"""What does a finished study say of slides that it has never seen, and may it? (notebook 10)"""
