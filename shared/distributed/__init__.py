"""Work spread over processes: a pool that survives its workers' deaths, and signals that wait for a safe moment."""
