"""The adapters: a desk inside a trading loop, and the frameworks of bots, each the real one."""
