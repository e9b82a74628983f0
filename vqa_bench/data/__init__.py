"""Data of the benchmark: a folder of pictures and questions becomes a shard of bytes, and that becomes samples."""
