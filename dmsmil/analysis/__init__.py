"""Is it better, what is each part worth, what held of the paper? (notebooks 04, 05, 06 and 09)"""
