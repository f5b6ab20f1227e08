"""Fakes for the tests of the poll loop."""
