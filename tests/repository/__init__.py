"""Checks the repository itself: its pages, references, examples, wheel and deployment files."""
