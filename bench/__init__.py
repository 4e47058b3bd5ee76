"""Speed claims, each measured beside a named peer in the same run."""
