"""What does the network see? (notebook 02)"""
