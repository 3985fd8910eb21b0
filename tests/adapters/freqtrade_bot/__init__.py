"""Tests of `DeskMixin` in the real freqtrade bot, trading at the paper venue."""
