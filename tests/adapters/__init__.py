"""Adapters on their real frameworks: a desk, freqtrade, nautilus, ccxt. Those that are not installed are skipped."""
