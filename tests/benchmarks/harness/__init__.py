"""What `tests.benchmarks.peers` adds to the harness of `../shared/bench`. Runs there, under the peers' interpreters."""
