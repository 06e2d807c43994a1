"""How tight every bounding method is, against the exact optimum: one measurement a child process, tables, figures."""
