"""A text world with known answers for agents that learn: tasks, a fallible solver, a scripted model that distils."""
