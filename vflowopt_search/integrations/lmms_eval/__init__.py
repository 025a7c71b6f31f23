"""`lmms-eval --model vflowopt`: found by lmms-eval through its entry-point group, no fork."""
