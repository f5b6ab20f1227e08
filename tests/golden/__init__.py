"""Goldens: what is read from pages, what is exposed, what a recorded run comes to."""
