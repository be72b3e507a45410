"""What training and sampling cost: jobs, each measured in a process of its own, and the table of their rows."""
