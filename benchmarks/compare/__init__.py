"""Compare the speed of a commit with the current tree: `make bench-compare BASE=<commit>`."""
