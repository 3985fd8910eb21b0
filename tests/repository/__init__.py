"""Tests of files outside the package: pages, examples, deployment files, the wheel."""
