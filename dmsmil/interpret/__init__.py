"""Where does a method look, and is that right? (notebook 07)"""
