"""Several processes behind one address: who starts them, what is said between them, how they are measured."""
