"""What people look at: pictures of counterexamples, the live line and the tables of the terminal."""
