"""Runs MLPerf's scenarios with its own load generator, LoadGen."""
