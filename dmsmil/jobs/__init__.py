"""How is work done whole: files that are whole or absent, units of work over processes and clusters."""
