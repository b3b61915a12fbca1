"""Figures of the walkthroughs: one file a topic; they are shown, not saved."""
