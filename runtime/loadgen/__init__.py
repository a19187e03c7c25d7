"""MLPerf's scenarios, driven by its own load generator."""
