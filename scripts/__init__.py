"""Commands of the project: thin ones for users, benchmarks, studies, and the fuzzer."""
