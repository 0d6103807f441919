"""Benchmarks of the distillation core against TRL: the cache, the aligner, the steps, the quality."""
