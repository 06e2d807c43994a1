"""Output for people: pictures of counterexamples, and the progress line and tables of the terminal."""
