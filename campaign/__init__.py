"""Breaks the service and its databases on purpose, and shows that no acknowledged decision is lost or doubled."""
