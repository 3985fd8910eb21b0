"""Tests of the runner of the real bots' rounds."""
